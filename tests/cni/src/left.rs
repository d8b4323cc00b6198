//! What exists on a node because of pods: counted before and after, so that nothing is left.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};

use crate::Node;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left(BTreeMap<&'static str, usize>);

impl Left {
    pub(crate) fn count(node: &Node) -> Self {
        let (ipam, pins) = (node.state().join("ipam/attachments"), node.pins());
        let links = nix::net::if_::if_nameindex().expect("interfaces");
        let is_pods = |name: &str| name.len() == 15 && name.starts_with("leme");
        Self(BTreeMap::from([
            ("files of reservations", files(&ipam, |_| true)),
            ("links", links.iter().filter(|link| is_pods(&link.name().to_string_lossy())).count()),
            ("pinned attachments", files(&pins.join("links"), |name| name.contains("_pod-"))),
            ("endpoints", entries::<16, 24>(&pins, "endpoints")),
            ("rates", entries::<16, 48>(&pins, "rates")),
            ("frontends", entries::<20, 4>(&pins, "frontends")),
            ("services", entries::<4, 16>(&pins, "services")),
            ("slots", entries::<12, 4>(&pins, "slots")),
            ("backends", entries::<4, 24>(&pins, "backends")),
        ]))
    }

    /// Retired entries go a second after nothing leads to them any more.
    #[track_caller]
    pub fn expect_soon(&self, node: &Node, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = node.left();
            if now == *self {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {now:?} is there, not {self:?}");
            sleep(Duration::from_millis(50));
        }
    }

    /// All but what is retired.
    pub fn at_once(mut self) -> Self {
        self.0.retain(|thing, _| !["services", "slots", "backends"].contains(thing));
        self
    }

    pub fn reservations(&self) -> usize {
        self.0["files of reservations"]
    }
}

fn files(directory: &Path, counts: impl Fn(&str) -> bool) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| counts(&entry.file_name().to_string_lossy())).count()
}

fn entries<const KEY: usize, const VALUE: usize>(pins: &Path, name: &str) -> usize {
    let Ok(data) = MapData::from_pin(pins.join(name)) else { return 0 };
    let map = HashMap::<_, [u8; KEY], [u8; VALUE]>::try_from(Map::HashMap(data)).expect("a map of this layout");
    map.keys().filter_map(Result::ok).count()
}
