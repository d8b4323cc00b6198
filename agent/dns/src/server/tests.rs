//! Over real sockets on loopback, against an upstream of our own.

use super::*;
use hickory_proto::rr::rdata::A;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use std::net::Ipv4Addr;

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

struct Running {
    address: SocketAddr,
    metrics: Arc<Metrics>,
}

/// A server for one Service and one alias, forwarding to `upstream`.
async fn start(upstream: Option<SocketAddr>) -> Running {
    let mut zone = Zone::new("cluster.local");
    for (name, spec) in [
        ("web", json!({"clusterIP": "10.96.0.20"})),
        ("far", json!({"type": "ExternalName", "externalName": "example.org"})),
    ] {
        let object = json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec});
        zone.upsert_service(&serde_json::from_value::<Service>(object).unwrap());
    }
    let metrics = Arc::new(Metrics::default());
    let forwarder = Forwarder::new(upstream.into_iter().collect(), Arc::clone(&metrics));
    let server = Arc::new(Server::new(Arc::new(RwLock::new(zone)), forwarder, Arc::clone(&metrics)));
    let free = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    tokio::spawn(serve_udp(Arc::clone(&server), address));
    tokio::spawn(serve_tcp(server, address));
    while TcpStream::connect(address).await.is_err() {
        tokio::task::yield_now().await;
    }
    Running { address, metrics }
}

/// Answers every question with as many addresses, and counts.
async fn upstream(records: u8) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            counter.fetch_add(1, Relaxed);
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let mut response = reply(&request, ResponseCode::NoError);
            let name = request.queries[0].name();
            response.answers.extend(
                (0..records)
                    .map(|last| Record::from_rdata(name.clone(), 60, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))),
            );
            socket.send_to(&response.to_vec().unwrap(), client).await.unwrap();
        }
    });
    (address, asked)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn udp(server: &Running, request: &Message) -> Message {
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    let mut buffer = [0; 4096];
    // The UDP socket may appear a moment after the TCP one.
    for _ in 0..100 {
        socket.send_to(&request.to_vec().unwrap(), server.address).await.unwrap();
        if let Ok(received) = timeout(Duration::from_millis(200), socket.recv_from(&mut buffer)).await {
            return Message::from_vec(&buffer[..received.unwrap().0]).unwrap();
        }
    }
    panic!("no answer");
}

async fn tcp(server: &Running, request: &Message) -> Message {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let bytes = request.to_vec().unwrap();
    stream.write_u16(bytes.len() as u16).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

#[tokio::test]
async fn cluster_names_fail_until_the_cluster_is_known_and_are_answered_after() {
    let server = start(None).await;
    let request = question("web.ns.svc.cluster.local.", RecordType::A);
    assert_eq!(udp(&server, &request).await.metadata.response_code, ResponseCode::ServFail);
    server.metrics.mark_synced();
    for answer in [udp(&server, &request).await, tcp(&server, &request).await] {
        assert_eq!((answer.metadata.id, answer.metadata.authoritative), (4711, true));
        assert_eq!(answer.answers[0].data, RData::A(A(Ipv4Addr::new(10, 96, 0, 20))));
        assert_eq!(answer.answers[0].ttl, 5);
    }
}

#[tokio::test]
async fn negative_answers_carry_the_soa() {
    let server = start(None).await;
    server.metrics.mark_synced();
    for (name, code) in [("none.ns.svc", ResponseCode::NXDomain), ("ns.svc", ResponseCode::NoError)] {
        let answer = udp(&server, &question(&format!("{name}.cluster.local."), RecordType::AAAA)).await;
        assert_eq!(answer.metadata.response_code, code);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
}

#[tokio::test]
async fn other_names_are_forwarded_and_remembered() {
    let (address, asked) = upstream(1).await;
    let server = start(Some(address)).await;
    server.metrics.mark_synced();
    for name in ["example.org.", "EXAMPLE.org."] {
        let answer = udp(&server, &question(name, RecordType::A)).await;
        assert_eq!((answer.metadata.id, answer.answers.len()), (4711, 1));
        assert_eq!(answer.queries[0].name().to_ascii(), name);
    }
    assert_eq!(asked.load(Relaxed), 1);
}

#[tokio::test]
async fn an_alias_comes_with_what_it_leads_to() {
    let (address, _) = upstream(2).await;
    let server = start(Some(address)).await;
    server.metrics.mark_synced();
    let answer = udp(&server, &question("far.ns.svc.cluster.local.", RecordType::A)).await;
    let kinds: Vec<RecordType> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A, RecordType::A]);
}

#[tokio::test]
async fn what_does_not_fit_a_datagram_is_cut() {
    let (address, _) = upstream(100).await;
    let server = start(Some(address)).await;
    let cut = udp(&server, &question("example.org.", RecordType::A)).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert!(tcp(&server, &question("example.org.", RecordType::A)).await.answers.len() == 100);
}

#[tokio::test]
async fn without_upstreams_other_names_are_refused_and_bad_questions_named() {
    let server = start(None).await;
    server.metrics.mark_synced();
    let refused = udp(&server, &question("example.org.", RecordType::A)).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    let mut version = question("web.ns.svc.cluster.local.", RecordType::A);
    version.set_edns(edns::ours()).edns.as_mut().unwrap().set_version(1);
    // 16 has two names.
    assert_eq!(u16::from(udp(&server, &version).await.metadata.response_code), u16::from(ResponseCode::BADVERS));
    let mut notify = question("cluster.local.", RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(udp(&server, &notify).await.metadata.response_code, ResponseCode::NotImp);
}
