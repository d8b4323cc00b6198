use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// An API that knows one Lease, with compare-and-swap.
#[derive(Default)]
struct Leases(Mutex<(Option<Value>, u64)>);

impl Leases {
    fn answer(&self, method: &Method, body: Option<Value>) -> (u16, Value) {
        let mut state = self.0.lock().unwrap();
        let failed =
            |code, reason| (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason}));
        let (Some(mut new), true) = (body, method != Method::GET) else {
            return state.0.clone().map_or_else(|| failed(404, "NotFound"), |lease| (200, lease));
        };
        let current = state.0.as_ref().map_or(Value::Null, |lease| lease["metadata"]["resourceVersion"].clone());
        if new["metadata"]["resourceVersion"] != current {
            return failed(409, if method == Method::POST { "AlreadyExists" } else { "Conflict" });
        }
        state.1 += 1;
        new["metadata"]["resourceVersion"] = state.1.to_string().into();
        state.0 = Some(new.clone());
        (200, new)
    }

    fn spec(&self) -> Value {
        self.0.lock().unwrap().0.as_ref().map_or(Value::Null, |lease| lease["spec"].clone())
    }

    /// A client that nobody answers any more once `cut` is set.
    fn client(self: &Arc<Self>, cut: &Arc<AtomicBool>) -> Client {
        let (leases, cut) = (self.clone(), cut.clone());
        let service = move |request: Request<Body>| {
            let (leases, cut) = (leases.clone(), cut.clone());
            async move {
                if cut.load(Ordering::SeqCst) {
                    pending::<()>().await;
                }
                let (parts, body) = request.into_parts();
                let body = serde_json::from_slice(&body.collect_bytes().await.unwrap()).ok();
                // Events are not what this is about.
                let (code, answer) = match parts.uri.path().contains("leases") {
                    true => leases.answer(&parts.method, body),
                    false => (404, json!({"kind": "Status", "status": "Failure", "code": 404})),
                };
                let answer = Response::builder().status(code).body(Body::from(serde_json::to_vec(&answer).unwrap()));
                Ok::<_, Infallible>(answer.unwrap())
            }
        };
        Client::new(tower::service_fn(service), "default")
    }
}

/// When one began and, if it has, ended.
type Span = (Instant, Option<Instant>);

/// A candidate that notes when its terms begin and end.
struct Stands {
    cut: Arc<AtomicBool>,
    shutdown: CancellationToken,
    terms: Arc<Mutex<Vec<Span>>>,
}

fn stand(leases: &Arc<Leases>, identity: &str) -> Stands {
    let cut = Arc::new(AtomicBool::new(false));
    let stands = Stands { cut: cut.clone(), shutdown: CancellationToken::new(), terms: Arc::default() };
    let election = Election { name: "kube-scheduler", identity: identity.into(), times: Times::default() };
    let terms = stands.terms.clone();
    let work = move |term: Term| {
        let terms = terms.clone();
        async move {
            terms.lock().unwrap().push((Instant::now(), None));
            term.over().cancelled().await;
            terms.lock().unwrap().last_mut().unwrap().1 = Some(Instant::now());
        }
    };
    tokio::spawn(lead(leases.client(&cut), election, stands.shutdown.clone(), work));
    stands
}

impl Stands {
    fn begin(&self, term: usize) -> Option<Instant> {
        self.terms.lock().unwrap().get(term).map(|(begin, _)| *begin)
    }

    fn end(&self, term: usize) -> Option<Instant> {
        self.terms.lock().unwrap().get(term).and_then(|(_, end)| *end)
    }
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_when_it_ends_the_next_does_without_waiting_for_the_lease_to_run_out() {
    let leases = Arc::new(Leases::default());
    let first = stand(&leases, "first");
    sleep(Duration::from_secs(1)).await;
    let second = stand(&leases, "second");
    sleep(Duration::from_secs(60)).await;
    assert!(first.begin(0).is_some() && first.end(0).is_none() && second.begin(0).is_none());
    assert_eq!(
        (&leases.spec()["holderIdentity"], &leases.spec()["leaseDurationSeconds"]),
        (&json!("first"), &json!(15))
    );
    let told = Instant::now();
    first.shutdown.cancel();
    sleep(Duration::from_secs(3)).await;
    let (ended, begun) = (first.end(0).unwrap(), second.begin(0).unwrap());
    assert!(ended <= begun && begun - told < Duration::from_secs(3));
    assert_eq!((&leases.spec()["holderIdentity"], &leases.spec()["leaseTransitions"]), (&json!("second"), &json!(1)));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_cut_off_has_stopped_before_another_takes_over_and_stands_again_later() {
    let leases = Arc::new(Leases::default());
    let first = stand(&leases, "first");
    sleep(Duration::from_secs(1)).await;
    let second = stand(&leases, "second");
    sleep(Duration::from_secs(10)).await;
    let cut = Instant::now();
    first.cut.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(30)).await;
    let (ended, begun) = (first.end(0).unwrap(), second.begin(0).unwrap());
    assert!(ended + Duration::from_secs(2) < begun, "{:?} and {:?} after the cut", ended - cut, begun - cut);
    assert!(begun - cut < Duration::from_secs(18));
    first.cut.store(false, Ordering::SeqCst);
    second.shutdown.cancel();
    sleep(Duration::from_secs(20)).await;
    assert!(first.begin(1).is_some(), "attempts that nobody answered are given up");
}

#[tokio::test(start_paused = true)]
async fn what_has_a_client_of_a_term_can_do_nothing_when_the_term_is_over() {
    let leases = Arc::new(Leases::default());
    let cut = Arc::new(AtomicBool::new(false));
    let parent = CancellationToken::new();
    let term = Term::new(&parent);
    let api: Api<Lease> = Api::namespaced(term.client(leases.client(&cut)), NAMESPACE);
    assert!(api.get_opt("a").await.unwrap().is_none());
    cut.store(true, Ordering::SeqCst);
    let underway = tokio::spawn({
        let api = api.clone();
        async move { api.get_opt("a").await }
    });
    sleep(Duration::from_secs(1)).await;
    assert!(!underway.is_finished());
    term.end().await;
    assert!(underway.await.unwrap().is_err(), "cut off");
    cut.store(false, Ordering::SeqCst);
    assert!(api.get_opt("a").await.is_err(), "nothing new begins");
}
