//! Images that nothing uses go when the disk that holds them fills up, those longest out of use first: the kubelet's
//! rules, with its defaults.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::{Image, ImageSpec};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::runtime::{Cri, CriError};

/// The kubelet's periods.
const LOOK: Duration = Duration::from_secs(300);
const MIN_AGE: Duration = Duration::from_secs(120);

/// Percent of the disk that are in use: above `high` images go, until `low` is reached; 100 is never above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub high: u8,
    pub low: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self { high: 85, low: 80 }
    }
}

/// When an image was first seen here, and when something last used it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Instant,
    used: Option<Instant>,
}

/// Looks at the disk until `shutdown`.
pub async fn keep_room(cri: Cri, limits: Limits, shutdown: CancellationToken) {
    let mut seen = HashMap::new();
    let rounds = async {
        loop {
            if let Err(error) = look(&cri, limits, &mut seen).await {
                warn!(%error, "images are not looked at");
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    shutdown.run_until_cancelled(rounds).await;
}

async fn look(cri: &Cri, limits: Limits, seen: &mut HashMap<String, Seen>) -> Result<(), CriError> {
    let images = cri.list_images().await?;
    let containers = cri.list_containers(None).await?;
    let in_use = |image: &Image| {
        let names =
            |name: &str| name == image.id || image.repo_digests.iter().chain(&image.repo_tags).any(|it| it == name);
        containers.iter().any(|it| names(&it.image_ref) || it.image.as_ref().is_some_and(|spec| names(&spec.image)))
    };
    let used: HashSet<&str> = images.iter().filter(|image| in_use(image)).map(|image| &*image.id).collect();
    let now = Instant::now();
    note(seen, &images, &used, now);
    let excess = excess(cri, limits).await?;
    for image in choose(&images, seen, &used, now, excess) {
        info!(
            image = image.repo_tags.first(),
            bytes = image.size,
            "an image that nothing uses goes: the disk fills up"
        );
        cri.remove_image(ImageSpec { image: image.id.clone(), ..Default::default() }).await?;
    }
    Ok(())
}

fn note(seen: &mut HashMap<String, Seen>, images: &[Image], used: &HashSet<&str>, now: Instant) {
    seen.retain(|id, _| images.iter().any(|image| image.id == *id));
    for image in images {
        let entry = seen.entry(image.id.clone()).or_insert(Seen { first: now, used: None });
        if used.contains(&*image.id) {
            entry.used = Some(now);
        }
    }
}

/// How many bytes too many are in use; none below the high limit.
async fn excess(cri: &Cri, limits: Limits) -> Result<u64, CriError> {
    let info = cri.image_fs_info().await?;
    let mount = info.image_filesystems.first().and_then(|disk| disk.fs_id.as_ref()).map(|id| id.mountpoint.clone());
    let stat = mount.and_then(|mount| nix::sys::statvfs::statvfs(Path::new(&mount)).ok());
    Ok(stat.map_or(0, |stat| {
        beyond(stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size(), limits)
    }))
}

fn beyond(all: u64, free: u64, limits: Limits) -> u64 {
    let used = all.saturating_sub(free);
    if used * 100 < all * u64::from(limits.high) || limits.high == 100 {
        return 0;
    }
    used.saturating_sub(all / 100 * u64::from(limits.low))
}

/// Enough of the images to get rid of so much, if there are.
fn choose<'a>(
    images: &'a [Image],
    seen: &HashMap<String, Seen>,
    used: &HashSet<&str>,
    now: Instant,
    mut bytes: u64,
) -> Vec<&'a Image> {
    // containerd before 1.7 pins nothing, and a sandbox's image is no container's.
    let kept = |image: &Image| image.pinned || image.repo_tags.iter().any(|tag| tag.contains("/pause:"));
    let when = |image: &Image| seen.get(&image.id).map(|seen| (seen.used, seen.first));
    let old = |image: &Image| seen.get(&image.id).is_some_and(|seen| now.duration_since(seen.first) >= MIN_AGE);
    let mut idle: Vec<_> =
        images.iter().filter(|image| !used.contains(&*image.id) && !kept(image) && old(image)).collect();
    idle.sort_by_key(|image| when(image));
    idle.into_iter()
        .take_while(|image| {
            let wanted = bytes > 0;
            bytes = bytes.saturating_sub(image.size);
            wanted
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str) -> Image {
        Image { id: id.into(), size: 10, repo_tags: vec![format!("docker.io/library/{id}:1")], ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn those_longest_out_of_use_go_until_there_is_room() {
        let mut images: Vec<_> = ["never", "long", "lately", "now", "pinned"].map(image).into();
        images[4].pinned = true;
        let mut seen = HashMap::new();
        note(&mut seen, &images, &["long", "lately", "now"].into(), Instant::now());
        tokio::time::advance(MIN_AGE).await;
        note(&mut seen, &images, &["lately", "now"].into(), Instant::now());
        let used = ["now"].into();
        let ids = |bytes| -> Vec<String> {
            choose(&images, &seen, &used, Instant::now(), bytes).iter().map(|image| image.id.clone()).collect()
        };
        assert_eq!(ids(0), [""; 0]);
        assert_eq!(ids(11), ["never", "long"]);
        assert_eq!(ids(1000), ["never", "long", "lately"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_that_just_came_stays() {
        let images = [image("new")];
        let mut seen = HashMap::new();
        note(&mut seen, &images, &[].into(), Instant::now());
        tokio::time::advance(MIN_AGE / 2).await;
        assert!(choose(&images, &seen, &[].into(), Instant::now(), 1).is_empty());
    }

    #[test]
    fn there_is_excess_above_the_high_limit_and_it_reaches_down_to_the_low_one() {
        let limits = Limits::default();
        assert_eq!(beyond(1000, 151, limits), 0);
        assert_eq!(beyond(1000, 100, limits), 100);
        assert_eq!(beyond(1000, 0, Limits { high: 100, low: 80 }), 0);
    }
}
