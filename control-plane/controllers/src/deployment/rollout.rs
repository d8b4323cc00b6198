//! How many pods each ReplicaSet of a Deployment should have next. Pure: the numbers in, the numbers out.

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Resource, ResourceExt};

use super::{DESIRED, MAXIMUM};
use crate::objects::scaled;

/// The limits of a rolling update: pods above the wanted number, pods below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub replicas: i32,
    pub surge: i32,
    pub unavailable: i32,
}

impl Limits {
    pub fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.clone().unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.unwrap_or_default();
        if strategy.type_.as_deref() == Some("Recreate") {
            return Self { replicas, surge: 0, unavailable: replicas };
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let quarter = IntOrString::String("25%".into());
        let surge = scaled(rolling.max_surge.as_ref().or(Some(&quarter)), replicas, true);
        let unavailable = scaled(rolling.max_unavailable.as_ref().or(Some(&quarter)), replicas, false);
        // Both zero would never move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    pub fn maximum(self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    pub fn minimum_available(self) -> i32 {
        (self.replicas - self.unavailable).max(0)
    }
}

/// One ReplicaSet as a rollout sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub name: String,
    pub replicas: i32,
    pub available: i32,
}

impl Share {
    pub fn of(set: &ReplicaSet) -> Self {
        Self {
            name: set.name_any(),
            replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0),
            available: set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0),
        }
    }
}

/// Set this ReplicaSet to so many replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub replicas: i32,
}

/// Replicas for a new ReplicaSet that has `current` while the deployment has `total` pods in all.
pub fn grow(limits: Limits, current: i32, total: i32) -> i32 {
    let room = (limits.maximum() - total).max(0);
    current + room.min(limits.replicas - current).max(0)
}

/// The next step of a rolling update: first the new ReplicaSet, and when it has its number, the old ones (oldest first).
pub fn roll(limits: Limits, new: &Share, old: &[Share]) -> Vec<Step> {
    let total = new.replicas + old.iter().map(|share| share.replicas).sum::<i32>();
    let wanted = if new.replicas > limits.replicas { limits.replicas } else { grow(limits, new.replicas, total) };
    if wanted != new.replicas {
        return vec![Step { name: new.name.clone(), replicas: wanted }];
    }
    shrink(limits, new, old, total)
}

/// Unhealthy old pods go first: they cost no availability. Then healthy ones, as far as availability allows.
fn shrink(limits: Limits, new: &Share, old: &[Share], total: i32) -> Vec<Step> {
    let unavailable_new = (new.replicas - new.available).max(0);
    let mut room = total - limits.minimum_available() - unavailable_new;
    if room <= 0 {
        return Vec::new();
    }
    let mut after = old.to_vec();
    for share in &mut after {
        let unhealthy = (share.replicas - share.available).clamp(0, room);
        share.replicas -= unhealthy;
        room -= unhealthy;
    }
    let available = new.available + old.iter().map(|share| share.available).sum::<i32>();
    let mut surplus = available - limits.minimum_available();
    for share in &mut after {
        let healthy = share.replicas.clamp(0, surplus.max(0));
        share.replicas -= healthy;
        surplus -= healthy;
    }
    steps(old, &after)
}

/// A changed replica count in the middle of a rollout is shared out in proportion to what each ReplicaSet has; what
/// rounding leaves over goes to the largest. `maximum_before` is the surge limit that the current numbers were made for.
pub fn rescale(limits: Limits, sets: &[Share], maximum_before: i32) -> Vec<Step> {
    let mut active: Vec<_> = sets.iter().filter(|share| share.replicas > 0).cloned().collect();
    let before = active.clone();
    active.sort_by_key(|share| std::cmp::Reverse(share.replicas));
    let total: i32 = active.iter().map(|share| share.replicas).sum();
    let allowed = if limits.replicas > 0 { limits.maximum() } else { 0 };
    let mut change = allowed - total;
    if change == 0 {
        return Vec::new();
    }
    let growing = change > 0;
    for share in &mut active {
        let exact = f64::from(share.replicas) * f64::from(allowed) / f64::from(maximum_before.max(1));
        #[expect(clippy::cast_possible_truncation, reason = "replica counts fit")]
        let part = exact.round() as i32 - share.replicas;
        let part = if growing { part.clamp(0, change) } else { part.clamp(change.max(-share.replicas), 0) };
        share.replicas += part;
        change -= part;
    }
    if let Some(largest) = active.first_mut() {
        largest.replicas = (largest.replicas + change).max(0);
    }
    active.sort_by_key(|share| before.iter().position(|b| b.name == share.name));
    steps(&before, &active)
}

fn steps(before: &[Share], after: &[Share]) -> Vec<Step> {
    let changed = before.iter().zip(after).filter(|(before, after)| before.replicas != after.replicas);
    changed.map(|(_, after)| Step { name: after.name.clone(), replicas: after.replicas }).collect()
}

/// The replica count and surge limit that a ReplicaSet's current size was made for.
pub fn made_for(set: &ReplicaSet) -> (Option<i32>, Option<i32>) {
    let number = |name| set.meta().annotations.as_ref()?.get(name)?.parse().ok();
    (number(DESIRED), number(MAXIMUM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, replicas: i32, available: i32) -> Share {
        Share { name: name.into(), replicas, available }
    }

    fn step(name: &str, replicas: i32) -> Step {
        Step { name: name.into(), replicas }
    }

    const TEN: Limits = Limits { replicas: 10, surge: 3, unavailable: 2 };

    #[test]
    fn a_rollout_grows_the_new_set_into_the_surge_first() {
        assert_eq!(roll(TEN, &share("new", 0, 0), &[share("old", 10, 10)]), [step("new", 3)]);
    }

    #[test]
    fn old_pods_go_only_as_far_as_availability_allows() {
        assert_eq!(roll(TEN, &share("new", 3, 0), &[share("old", 10, 10)]), [step("old", 8)]);
        assert_eq!(roll(TEN, &share("new", 3, 3), &[share("old", 10, 10)]), [step("old", 5)]);
        assert_eq!(roll(TEN, &share("new", 5, 0), &[share("old", 8, 8)]), []);
    }

    #[test]
    fn unhealthy_old_pods_cost_no_availability() {
        let old = [share("broken", 4, 0), share("good", 8, 8)];
        assert_eq!(roll(TEN, &share("new", 1, 1), &old), [step("broken", 0), step("good", 7)]);
    }

    #[test]
    fn every_rollout_ends_and_never_leaves_its_limits() {
        for (replicas, surge, unavailable) in [(1, 1, 0), (1, 0, 1), (3, 1, 0), (10, 3, 2), (7, 0, 1), (5, 5, 5)] {
            let limits = Limits { replicas, surge, unavailable };
            let (mut new, mut old) = (share("new", 0, 0), [share("old", replicas, replicas)]);
            for _ in 0..100 {
                for step in roll(limits, &new, &old) {
                    let target = if step.name == "new" { &mut new } else { &mut old[0] };
                    target.replicas = step.replicas;
                }
                old[0].available = old[0].available.min(old[0].replicas);
                assert!(new.replicas + old[0].replicas <= limits.maximum());
                assert!(new.available + old[0].available >= limits.minimum_available());
                new.available = new.replicas;
            }
            assert_eq!((new.replicas, old[0].replicas), (replicas, 0), "{limits:?}");
        }
    }

    #[test]
    fn a_new_count_in_a_rollout_is_shared_in_proportion() {
        let sets = [share("new", 5, 5), share("old", 8, 8)];
        let limits = Limits { replicas: 20, surge: 5, unavailable: 5 };
        assert_eq!(rescale(limits, &sets, 13), [step("new", 10), step("old", 15)]);
        let down = Limits { replicas: 0, surge: 0, unavailable: 0 };
        assert_eq!(rescale(down, &sets, 13), [step("new", 0), step("old", 0)]);
    }

    #[test]
    fn limits_round_as_upstream_and_never_block() {
        let deployment = |surge, unavailable| {
            serde_json::from_value(serde_json::json!({"spec": {"replicas": 10, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
            .unwrap()
        };
        assert_eq!(Limits::of(&deployment("25%", "25%")), TEN);
        assert_eq!(Limits::of(&deployment("0%", "0%")), Limits { replicas: 10, surge: 0, unavailable: 1 });
    }
}
