//! The whole server over TLS, as clients meet it: certificates, tokens, restarts.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Secret, ServiceAccount},
};
use kube::{
    Api, Client, Config as ClientConfig, Error,
    api::{ListParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use leme_control_plane::{
    Config, Etcd,
    pki::{Authority, KubeconfigNames, kubeconfig},
    run,
};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    async fn start(directory: &Path) -> Self {
        let mut config = Config::new([127, 0, 0, 1].into(), directory);
        config.bind = SocketAddr::new([127, 0, 0, 1].into(), 0);
        config.run_controllers = false;
        let (ready, address) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(config, |address| ready.send(address).expect("the test waits"), shutdown.clone()));
        Self { address: address.await.unwrap(), shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn client(text: &str) -> Client {
    let kubeconfig: Kubeconfig = serde_norway::from_str(text).unwrap();
    let config = ClientConfig::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn admin(directory: &Path) -> Client {
    client(&std::fs::read_to_string(directory.join("admin.kubeconfig")).unwrap()).await
}

fn configmap(name: &str) -> ConfigMap {
    let mut object = ConfigMap::default();
    object.metadata.name = Some(name.into());
    object
}

fn code(error: &Error) -> u16 {
    match error {
        Error::Api(status) => status.code,
        other => panic!("no answer: {other:?}"),
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart_and_the_certificates_are_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let maps: Api<ConfigMap> = Api::namespaced(admin(directory.path()).await, "default");
    let created = maps.create(&PostParams::default(), &configmap("a")).await.unwrap();
    let authority = std::fs::read(directory.path().join("pki/ca.crt")).unwrap();
    server.stop().await;
    let server = Server::start(directory.path()).await;
    let maps: Api<ConfigMap> = Api::namespaced(admin(directory.path()).await, "default");
    assert_eq!(maps.get("a").await.unwrap(), created);
    assert_eq!(std::fs::read(directory.path().join("pki/ca.crt")).unwrap(), authority);
    server.stop().await;
}

#[tokio::test]
async fn a_secret_is_on_no_disk_in_the_clear_and_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let secrets: Api<Secret> = Api::namespaced(admin(directory.path()).await, "default");
    let mut secret = Secret { string_data: Some([("word".into(), "open sesame".into())].into()), ..Secret::default() };
    secret.metadata.name = Some("cave".into());
    let created = secrets.create(&PostParams::default(), &secret).await.unwrap();
    server.stop().await;
    for file in std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.is_file())
    {
        let bytes = std::fs::read(&file).unwrap();
        // "open sesame" as it stands in the object.
        let plain = bytes.windows(14).any(|bytes| bytes == b"b3BlbiBzZXNhbW");
        assert!(!plain, "{}", file.display());
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert!(mode & 0o077 == 0 || bytes.is_empty(), "{} is {mode:o}", file.display());
    }
    let server = Server::start(directory.path()).await;
    let secrets: Api<Secret> = Api::namespaced(admin(directory.path()).await, "default");
    assert_eq!(secrets.get("cave").await.unwrap(), created);
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_a_401_and_no_broken_handshake() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let stranger = Authority::open(tempfile::tempdir().unwrap().path(), "ca", "other").unwrap();
    let own = std::fs::read_to_string(directory.path().join("pki/ca.crt")).unwrap();
    let names = KubeconfigNames { cluster: "c", user: "u", context: "x" };
    let identity = stranger.issue_client("kubernetes-admin", Some("system:masters")).unwrap();
    let text = kubeconfig(&format!("https://{}", server.address), &own, &identity, &names);
    let maps: Api<ConfigMap> = Api::namespaced(client(&text).await, "default");
    let error = tokio::time::timeout(Duration::from_secs(10), maps.list(&ListParams::default())).await.unwrap();
    assert_eq!(code(&error.unwrap_err()), 401);
    server.stop().await;
}

#[tokio::test]
async fn a_service_account_speaks_with_its_token_and_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let admin_client = admin(directory.path()).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(admin_client, "default");
    let mut account = ServiceAccount::default();
    account.metadata.name = Some("robot".into());
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let request = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
    let issued = accounts.create_token_request("robot", &PostParams::default(), &request).await.unwrap();

    let text = std::fs::read_to_string(directory.path().join("admin.kubeconfig")).unwrap();
    let mut config: Kubeconfig = serde_norway::from_str(&text).unwrap();
    let token = issued.status.unwrap().token;
    config.auth_infos[0].auth_info = Some(AuthInfo { token: token.map(Into::into), ..AuthInfo::default() });
    let config = ClientConfig::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(Client::try_from(config).unwrap(), "default");
    let error = maps.list(&ListParams::default()).await.unwrap_err();
    let Error::Api(status) = &error else { panic!("{error:?}") };
    assert_eq!(status.code, 403);
    assert!(
        status.message.contains("User \"system:serviceaccount:default:robot\" cannot list resource \"configmaps\"")
    );
    server.stop().await;
}

#[tokio::test]
async fn a_server_told_to_end_in_its_first_moment_ends() {
    let directory = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let mut config = Config::new([127, 0, 0, 1].into(), directory.path());
    config.bind = SocketAddr::new([127, 0, 0, 1].into(), 0);
    let at_once = shutdown.clone();
    let server = run(config, move |_| at_once.cancel(), shutdown);
    tokio::time::timeout(Duration::from_secs(10), server).await.expect("it never ends").unwrap();
}

#[tokio::test]
async fn a_server_that_waits_for_its_etcd_ends_when_told_to() {
    let directory = tempfile::tempdir().unwrap();
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = Config::new([127, 0, 0, 1].into(), directory.path());
    config.bind = SocketAddr::new([127, 0, 0, 1].into(), 0);
    let endpoints = vec![format!("http://{}", silent.local_addr().unwrap())];
    config.etcd = Some(Etcd { endpoints, ..Etcd::default() });
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(run(config, |_| unreachable!("its store never answered"), shutdown.clone()));
    // The server has come to its store.
    tokio::task::spawn_blocking(move || silent.accept().map(std::mem::forget)).await.unwrap().unwrap();
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(2), server).await.expect("it waits on").unwrap().unwrap();
}
