//! Security contexts: the pod's and the container's merged into what CRI takes.

use k8s_cri::v1::*;
use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
const MASKED_MORE: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageRunsAsRoot { pod: String, container: String },
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunsAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    UnknownUser { user: String, pod: String, container: String },
}

fn of_pod(pod: &core::Pod) -> Option<&core::PodSecurityContext> {
    pod.spec.as_ref()?.security_context.as_ref()
}

/// Which namespaces are the node's and which the pod's.
pub fn namespaces(pod: &core::Pod, of_container: bool) -> NamespaceOption {
    let spec = pod.spec.as_ref();
    let mode = |host: Option<bool>, own: NamespaceMode| if host == Some(true) { NamespaceMode::Node } else { own };
    let shared = spec.and_then(|spec| spec.share_process_namespace) == Some(true);
    // A container's own process namespace, unless the pod shares one; the sandbox's is always the pod's.
    let pid = if shared || !of_container { NamespaceMode::Pod } else { NamespaceMode::Container };
    NamespaceOption {
        network: mode(spec.and_then(|spec| spec.host_network), NamespaceMode::Pod) as i32,
        pid: mode(spec.and_then(|spec| spec.host_pid), pid) as i32,
        ipc: mode(spec.and_then(|spec| spec.host_ipc), NamespaceMode::Pod) as i32,
        ..Default::default()
    }
}

pub fn of_sandbox(pod: &core::Pod) -> LinuxSandboxSecurityContext {
    let context = of_pod(pod);
    let privileged = |(_, container): (_, &core::Container)| {
        container.security_context.as_ref().and_then(|context| context.privileged) == Some(true)
    };
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, false)),
        run_as_user: context.and_then(|context| context.run_as_user).map(int),
        run_as_group: context.and_then(|context| context.run_as_group).map(int),
        supplemental_groups: supplemental_groups(pod),
        privileged: super::plan::containers(pod).any(privileged),
        seccomp: Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, ..Default::default() }),
        ..Default::default()
    }
}

use security_profile::ProfileType;

/// `image_user` is what the image would run as where nobody says otherwise: a number, or a name.
pub fn of_container(
    pod: &core::Pod,
    container: &core::Container,
    image_user: (Option<i64>, &str),
) -> Result<LinuxContainerSecurityContext, SecurityError> {
    let outer = of_pod(pod);
    let own = container.security_context.as_ref();
    let run_as_user = own.and_then(|own| own.run_as_user).or(outer.and_then(|outer| outer.run_as_user));
    let non_root = own.and_then(|own| own.run_as_non_root).or(outer.and_then(|outer| outer.run_as_non_root));
    if non_root == Some(true) {
        refuse_root(pod, container, run_as_user, image_user)?;
    }
    let privileged = own.and_then(|own| own.privileged) == Some(true);
    let unmasked = privileged || own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |paths: &[&str]| if unmasked { Vec::new() } else { paths.iter().map(ToString::to_string).collect() };
    let (uid, username) = match run_as_user {
        Some(uid) => (Some(uid), String::new()),
        None => (image_user.0, if image_user.0.is_some() { String::new() } else { image_user.1.to_owned() }),
    };
    Ok(LinuxContainerSecurityContext {
        capabilities: own.and_then(|own| own.capabilities.as_ref()).map(capabilities),
        privileged,
        namespace_options: Some(namespaces(pod, true)),
        run_as_user: uid.map(int),
        run_as_group: own.and_then(|own| own.run_as_group).or(outer.and_then(|outer| outer.run_as_group)).map(int),
        run_as_username: username,
        readonly_rootfs: own.and_then(|own| own.read_only_root_filesystem) == Some(true),
        supplemental_groups: supplemental_groups(pod),
        no_new_privs: own.and_then(|own| own.allow_privilege_escalation) == Some(false),
        masked_paths: paths(&[&MASKED[..], &MASKED_MORE[..]].concat()),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(own, outer, privileged)),
        ..Default::default()
    })
}

fn refuse_root(
    pod: &core::Pod,
    container: &core::Container,
    run_as_user: Option<i64>,
    image_user: (Option<i64>, &str),
) -> Result<(), SecurityError> {
    let (namespace, uid) = (pod.namespace().unwrap_or_default(), pod.uid().unwrap_or_default());
    let (pod, container) = (format!("{}_{namespace}({uid})", pod.name_any()), container.name.clone());
    match (run_as_user, image_user) {
        (Some(0), _) => Err(SecurityError::RunsAsRoot { pod, container }),
        (Some(_), _) => Ok(()),
        (None, (Some(0), _)) => Err(SecurityError::ImageRunsAsRoot { pod, container }),
        (None, (None, "")) => Err(SecurityError::ImageRunsAsRoot { pod, container }),
        (None, (None, user)) => Err(SecurityError::UnknownUser { user: user.into(), pod, container }),
        (None, (Some(_), _)) => Ok(()),
    }
}

fn supplemental_groups(pod: &core::Pod) -> Vec<i64> {
    let Some(context) = of_pod(pod) else { return Vec::new() };
    context.supplemental_groups.iter().flatten().copied().chain(context.fs_group).collect()
}

fn capabilities(capabilities: &core::Capabilities) -> Capability {
    Capability {
        add_capabilities: capabilities.add.clone().unwrap_or_default(),
        drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
        ..Default::default()
    }
}

/// Nothing said means unconfined: the kubelet's default without `--seccomp-default`.
fn seccomp(
    own: Option<&core::SecurityContext>,
    outer: Option<&core::PodSecurityContext>,
    privileged: bool,
) -> SecurityProfile {
    let said = own.and_then(|own| own.seccomp_profile.as_ref());
    let said = said.or(outer.and_then(|outer| outer.seccomp_profile.as_ref()));
    let (kind, localhost) = match said.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) if !privileged => (ProfileType::RuntimeDefault, ""),
        Some(("Localhost", Some(path))) if !privileged => (ProfileType::Localhost, path),
        _ => (ProfileType::Unconfined, ""),
    };
    SecurityProfile { profile_type: kind as i32, localhost_ref: localhost.into() }
}

fn int(value: i64) -> Int64Value {
    Int64Value { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(of_pod: serde_json::Value, of_container: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {
            "securityContext": of_pod, "containers": [{"name": "c", "securityContext": of_container}]}}))
        .unwrap()
    }

    fn merged(pod: &core::Pod, user: (Option<i64>, &str)) -> Result<LinuxContainerSecurityContext, SecurityError> {
        of_container(pod, &pod.spec.as_ref().unwrap().containers[0], user)
    }

    #[test]
    fn the_container_overrides_its_pod() {
        let pod = pod(
            json!({"runAsUser": 1, "runAsGroup": 5, "fsGroup": 7, "supplementalGroups": [3]}),
            json!({"runAsUser": 2}),
        );
        let context = merged(&pod, (Some(0), "")).unwrap();
        assert_eq!(context.run_as_user, Some(int(2)));
        assert_eq!(context.run_as_group, Some(int(5)));
        assert_eq!(context.supplemental_groups, [3, 7]);
        assert!(!context.masked_paths.is_empty());
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let non_root = json!({"runAsNonRoot": true});
        for (container, user, refused) in [
            (json!({}), (Some(0), ""), true),
            (json!({}), (None, ""), true),
            (json!({}), (None, "www"), true),
            (json!({}), (Some(101), ""), false),
            (json!({"runAsUser": 0}), (Some(101), ""), true),
            (json!({"runAsUser": 9}), (Some(0), ""), false),
        ] {
            assert_eq!(
                merged(&pod(non_root.clone(), container.clone()), user).is_err(),
                refused,
                "{container} {user:?}"
            );
        }
    }

    #[test]
    fn a_privileged_container_sees_everything() {
        let context = merged(&pod(json!({}), json!({"privileged": true})), (Some(0), "")).unwrap();
        assert!(context.privileged && context.masked_paths.is_empty());
    }
}
