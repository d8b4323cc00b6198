//! Requests that have had their answer, and those that never got one, go after upstream's times.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::certificates::v1::CertificateSigningRequest,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, ResourceExt, api::DeleteParams};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use x509_parser::pem::parse_x509_pem;

use super::{certificate, condition};
use crate::{informer::Informers, queue::unless_gone};

const PERIOD: Duration = Duration::from_secs(3600);
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

pub async fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) {
    informers.certificate_requests.wait_until_synced().await;
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.cancelled() => return,
        }
        for request in informers.certificate_requests.all() {
            if is_over(&request, Timestamp::now())
                && let Err(error) = remove(&client, &request).await
            {
                tracing::warn!(request = request.name_any(), "an old certificate request stays: {error}");
            }
        }
    }
}

async fn remove(client: &Client, request: &CertificateSigningRequest) -> kube::Result<()> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    unless_gone(api.delete(&request.name_any(), &DeleteParams::default()).await).map(drop)
}

fn is_over(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let older = |time: Option<Timestamp>, age| time.is_some_and(|time| now.duration_since(time) > age);
    let since = |kind: &str| condition(request, kind)?.last_update_time.as_ref().map(|time| time.0);
    let created = request.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let undecided = request.status.as_ref().and_then(|status| status.conditions.as_ref()).is_none_or(Vec::is_empty);
    let issued = certificate(request);
    older(since("Denied"), DECIDED)
        || older(since("Failed"), DECIDED)
        || issued.is_some() && older(since("Approved"), DECIDED)
        || undecided && older(created, PENDING)
        || issued.is_some_and(|pem| has_expired(pem, now))
}

fn has_expired(pem: &[u8], now: Timestamp) -> bool {
    let Ok((_, block)) = parse_x509_pem(pem) else { return false };
    block.parse_x509().is_ok_and(|certificate| certificate.validity().not_after.timestamp() < now.as_second())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::Time};

    use super::{super::with, *};

    #[test]
    fn old_requests_go_and_young_ones_stay() {
        let mut pending = CertificateSigningRequest::default();
        let start = Timestamp::now();
        pending.metadata.creation_timestamp = Some(Time(start));
        let approved = with(&pending, "Approved", "", "");
        let mut issued = approved.clone();
        issued.status.as_mut().unwrap().certificate = Some(ByteString(b"c".to_vec()));
        let denied = with(&pending, "Denied", "", "");
        let failed = with(&approved, "Failed", "", "");
        for (request, hours, over) in [
            (&pending, 23, false),
            (&pending, 25, true),
            (&approved, 25, false),
            (&issued, 0, false),
            (&issued, 2, true),
            (&denied, 2, true),
            (&failed, 2, true),
            (&failed, 0, false),
        ] {
            assert_eq!(is_over(request, start + SignedDuration::from_hours(hours)), over, "{request:?} {hours}");
        }
    }
}
