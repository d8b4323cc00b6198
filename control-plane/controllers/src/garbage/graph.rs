//! Who owns what. Pure: changes go in, the objects worth another look come out.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;

pub type Uid = String;

#[derive(Clone, Debug, Default)]
pub struct Object {
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub uid: Uid,
    pub version: Option<String>,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub is_deleting: bool,
}

impl Object {
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == name)
    }

    /// The owner's foreground deletion waits for this object.
    pub fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
    }

    fn waits_for_dependents(&self) -> bool {
        self.is_deleting && self.has_finalizer("foregroundDeletion")
    }
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Keep,
    /// Somebody still owns it; these owners do not.
    Release(Vec<Uid>),
    Delete(PropagationPolicy),
}

#[derive(Default)]
pub struct Graph {
    objects: HashMap<Uid, Object>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<Object> {
        self.objects.get(uid).cloned()
    }

    pub fn knows(&self, uid: &str) -> bool {
        self.objects.contains_key(uid)
    }

    pub fn dependents(&self, owner: &str) -> Vec<Object> {
        let uids = self.dependents.get(owner).into_iter().flatten();
        uids.filter_map(|uid| self.objects.get(uid)).cloned().collect()
    }

    /// Returns what to look at: the object itself if it has owners to judge or finalizers of ours to serve.
    pub fn upsert(&mut self, object: Object) -> Vec<Uid> {
        if let Some(before) = self.objects.get(&object.uid).cloned() {
            self.unlink(&before);
        }
        for owner in &object.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(object.uid.clone());
        }
        let ours = object.is_deleting && ["orphan", "foregroundDeletion"].iter().any(|name| object.has_finalizer(name));
        let owners_to_judge = object
            .owners
            .iter()
            .any(|owner| self.objects.get(&owner.uid).is_none_or(|owner| owner.waits_for_dependents()));
        let wake = (ours || (owners_to_judge && !object.is_deleting)).then(|| object.uid.clone());
        self.objects.insert(object.uid.clone(), object);
        wake.into_iter().collect()
    }

    /// Returns what to look at: the dependents, and owners that waited for this object.
    pub fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let Some(object) = self.objects.remove(uid) else { return Vec::new() };
        self.unlink(&object);
        let dependents = self.dependents.get(uid).into_iter().flatten().cloned();
        let waiting = object.owners.iter().map(|owner| &owner.uid);
        let waiting = waiting.filter(|uid| self.objects.get(*uid).is_some_and(Object::waits_for_dependents)).cloned();
        dependents.chain(waiting).collect()
    }

    /// The objects of a kind that a complete list did not contain.
    pub fn absent(&self, kind: &str, api_version: &str, listed: &HashSet<Uid>) -> Vec<Uid> {
        let of_kind = |object: &&Object| object.kind == kind && object.api_version == api_version;
        let objects = self.objects.values().filter(of_kind);
        objects.filter(|object| !listed.contains(&object.uid)).map(|object| object.uid.clone()).collect()
    }

    /// What becomes of an object; `absent` are the owners that the API says do not exist.
    pub fn judge(&self, object: &Object, absent: &HashSet<Uid>) -> Verdict {
        let waiting = |owner: &OwnerReference| {
            owner.block_owner_deletion == Some(true)
                && self.objects.get(&owner.uid).is_some_and(Object::waits_for_dependents)
        };
        let (lost, solid): (Vec<_>, Vec<_>) =
            object.owners.iter().partition(|owner| absent.contains(&owner.uid) || waiting(owner));
        if lost.is_empty() {
            return Verdict::Keep;
        }
        if !solid.is_empty() {
            return Verdict::Release(lost.into_iter().map(|owner| owner.uid.clone()).collect());
        }
        let has_dependents = self.dependents.get(&object.uid).is_some_and(|uids| !uids.is_empty());
        if lost.iter().any(|owner| waiting(owner)) && has_dependents {
            return Verdict::Delete(PropagationPolicy::Foreground);
        }
        Verdict::Delete(match () {
            () if object.has_finalizer("orphan") => PropagationPolicy::Orphan,
            () if object.has_finalizer("foregroundDeletion") => PropagationPolicy::Foreground,
            () => PropagationPolicy::Background,
        })
    }

    fn unlink(&mut self, object: &Object) {
        for owner in &object.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(&object.uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str, owners: &[&str]) -> Object {
        let owners = owners.iter().map(|uid| OwnerReference {
            uid: (*uid).into(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        });
        Object { uid: uid.into(), kind: "Pod".into(), owners: owners.collect(), ..Object::default() }
    }

    fn deleting(mut object: Object, finalizer: &str) -> Object {
        object.is_deleting = true;
        object.finalizers = vec![finalizer.into()];
        object
    }

    fn absent(uids: &[&str]) -> HashSet<Uid> {
        uids.iter().map(|uid| (*uid).into()).collect()
    }

    #[test]
    fn dependents_follow_their_last_owner() {
        let mut graph = Graph::default();
        graph.upsert(object("owner", &[]));
        assert!(graph.upsert(object("child", &["owner"])).is_empty(), "an owned object is left alone");
        assert_eq!(graph.remove("owner"), ["child"]);
        let child = graph.get("child").unwrap();
        assert_eq!(graph.judge(&child, &absent(&["owner"])), Verdict::Delete(PropagationPolicy::Background));
    }

    #[test]
    fn an_object_with_another_owner_is_only_released() {
        let mut graph = Graph::default();
        graph.upsert(object("b", &[]));
        let child = object("child", &["a", "b"]);
        assert_eq!(graph.upsert(child.clone()), ["child"], "an unknown owner has to be looked for");
        assert_eq!(graph.judge(&child, &absent(&["a"])), Verdict::Release(vec!["a".into()]));
    }

    #[test]
    fn foreground_deletion_works_from_the_leaves_up() {
        let mut graph = Graph::default();
        graph.upsert(object("deployment", &[]));
        graph.upsert(object("set", &["deployment"]));
        graph.upsert(object("pod", &["set"]));
        assert_eq!(graph.upsert(deleting(object("deployment", &[]), "foregroundDeletion")), ["deployment"]);
        let set = graph.get("set").unwrap();
        assert_eq!(graph.judge(&set, &absent(&[])), Verdict::Delete(PropagationPolicy::Foreground));
        graph.upsert(deleting(set, "foregroundDeletion"));
        let pod = graph.get("pod").unwrap();
        assert_eq!(graph.judge(&pod, &absent(&[])), Verdict::Delete(PropagationPolicy::Background));
        assert_eq!(graph.remove("pod"), ["set"], "the owner that waited is looked at again");
    }

    #[test]
    fn a_complete_list_shows_what_was_missed() {
        let mut graph = Graph::default();
        graph.upsert(object("a", &[]));
        graph.upsert(object("b", &[]));
        assert_eq!(graph.absent("Pod", "", &absent(&["a"])), ["b"]);
    }
}
