//! The etcd engine, for clusters with several servers. Upstream's key layout is the caller's; revisions are etcd's own.
//!
//! A watch resumes by itself: it remembers the last revision that it delivered whole, so an etcd restart or a move
//! to another member is not seen above. Responses are never fragmented (not asked for; any size is decoded), so a
//! revision arrives whole. Progress is asked for only while somebody waits ([`Store::frontier`], the end of a
//! replay); etcd answers correctly from 3.5.8 on, 3.5.13 or newer is recommended.
//!
//! Calls go to one member until it fails, then to the next. What cannot have reached the member that failed is asked
//! again there, and every read; a write whose fate is unknown is the caller's matter.
//!
//! Keys that expire share etcd leases: one lease per lifetime and short span of time, not one per key.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, KeyValue, KvClient,
    SnapshotStreaming, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse, WatchStream,
};
use futures::{StreamExt, stream};
use tokio::sync::watch;

use crate::{
    Condition, Error, Event, Key, Operation, Outcome, Page, Record, Revision, Store, Transaction, Watch,
    transfer::{self, Content},
};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// While nothing has been answered since the last timeout: a request is several calls, and its client waits for them all.
const CALL_TIMEOUT_IN_TROUBLE: Duration = Duration::from_secs(2);
/// A whole prefix may be large.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(200);
/// A progress request that came before the watch had caught up gets no answer: it is repeated this often.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Idle watches ask where the store is this often.
const PROGRESS: Duration = Duration::from_secs(5);
/// Keys that are read at a time where all are.
const CONTENTS_PAGE: i64 = 500;
/// Keys on one lease at most.
const LEASE_KEYS: u32 = 1000;
/// A lease is handed out for a twentieth of its lifetime, a minute at most, and lives as much longer.
const LEASE_SHARE: u32 = 20;
const LEASE_SPAN: u32 = 60;

/// PEM files' contents.
#[derive(Clone, Debug)]
pub struct Tls {
    pub ca: Vec<u8>,
    /// A certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

pub struct Etcd {
    members: Arc<Members>,
    wanted: Arc<Mutex<HashMap<String, watch::Sender<Revision>>>>,
    leases: tokio::sync::Mutex<HashMap<u32, SharedLease>>,
}

struct SharedLease {
    id: i64,
    keys: u32,
    until: Instant,
}

impl Etcd {
    pub async fn connect(endpoints: &[String], tls: Option<Tls>) -> Result<Self, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.ca));
            if let Some((certificate, key)) = tls.identity {
                with = with.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(with);
        }
        let mut clients = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let client = Client::connect([endpoint], Some(options.clone())).await;
            clients.push(client.map_err(|error| unavailable("connect to etcd at", endpoint, &error))?);
        }
        let members = Members { clients, current: AtomicUsize::new(0), in_trouble: AtomicBool::new(false) };
        let members = Arc::new(members);
        Ok(Self { members, wanted: Arc::default(), leases: tokio::sync::Mutex::default() })
    }

    async fn read<R, F>(&self, action: &'static str, subject: &str, ask: impl Fn(KvClient) -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<R, etcd_client::Error>>,
    {
        self.members.call(action, subject, |_| true, |client| ask(kv(&client))).await
    }

    /// One lease for keys of the same lifetime that come close together.
    async fn lease(&self, seconds: u32) -> Result<i64, Error> {
        let mut leases = self.leases.lock().await;
        if let Some(lease) = leases.get_mut(&seconds)
            && lease.keys < LEASE_KEYS
            && lease.until > Instant::now()
        {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let span = (seconds / LEASE_SHARE).min(LEASE_SPAN);
        let until = Instant::now() + Duration::from_secs(u64::from(span));
        let ttl = i64::from(seconds + span);
        let grant = |client: Client| async move { client.lease_client().grant(ttl, None).await };
        let id = self.members.call("grant a lease", "etcd", |_| true, grant).await?.id();
        leases.insert(seconds, SharedLease { id, keys: 1, until });
        Ok(id)
    }

    async fn operations(&self, operations: Vec<Operation>) -> Result<Vec<TxnOp>, Error> {
        let mut converted = Vec::with_capacity(operations.len());
        for operation in operations {
            converted.push(match operation {
                Operation::Put { key, value, lease: None } => TxnOp::put(&*key, value, None),
                Operation::Put { key, value, lease: Some(seconds) } => {
                    let options = etcd_client::PutOptions::new().with_lease(self.lease(seconds).await?);
                    TxnOp::put(&*key, value, Some(options))
                }
                Operation::Delete { key } => TxnOp::delete(&*key, None),
            });
        }
        Ok(converted)
    }

    /// The channel on which watches of `prefix` hear how far somebody wants them to be.
    fn want(&self, prefix: &str, revision: Revision) -> watch::Receiver<Revision> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = wanted.entry(prefix.to_owned()).or_default();
        sender.send_if_modified(|current| std::mem::replace(current, revision.max(*current)) < revision);
        sender.subscribe()
    }
}

#[async_trait]
impl Store for Etcd {
    async fn revision(&self) -> Result<Revision, Error> {
        let ask = |mut kv: KvClient| async move { kv.get("revision", Some(GetOptions::new().with_count_only())).await };
        let response = self.read("read", "revision", ask).await?;
        Ok(at(response.header()))
    }

    async fn get(&self, key: &str) -> Result<(Option<Record>, Revision), Error> {
        let mut response = self.read("get", key, |mut kv| async move { kv.get(key, None).await }).await?;
        Ok((response.take_kvs().pop().map(record), at(response.header())))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        wanted: Option<Revision>,
    ) -> Result<Page, Error> {
        let start = after.filter(|after| *after >= prefix).map_or_else(|| prefix.to_owned(), |key| format!("{key}\0"));
        let revision = wanted.map_or(0, |revision| revision.0 as i64);
        let options = GetOptions::new().with_range(end_of(prefix)).with_limit(limit as i64).with_revision(revision);
        let ask = |mut kv: KvClient| {
            let (start, options) = (start.clone(), options.clone());
            async move { kv.get(start, Some(options)).await }
        };
        let response = self.read("list", prefix, ask).await;
        let mut response = match (response, wanted) {
            (Err(error), Some(wanted)) => return Err(self.explain(error, wanted).await),
            (response, _) => response?,
        };
        let records: Vec<_> = response.take_kvs().into_iter().map(record).collect();
        let remaining = (response.count() as u64).saturating_sub(records.len() as u64);
        Ok(Page { records, revision: wanted.unwrap_or_else(|| at(response.header())), remaining })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, Error> {
        let subject = transaction.operations.first().map_or("nothing", |operation| operation.key()).to_owned();
        let compares: Vec<_> = transaction.conditions.iter().map(compare).collect();
        let reads: Vec<_> = transaction.conditions.iter().map(|c| TxnOp::get(&**c.key(), None)).collect();
        let operations = self.operations(transaction.operations).await?;
        let txn = Txn::new().when(compares).and_then(operations).or_else(reads);
        let ask = |client: Client| {
            let txn = txn.clone();
            async move { kv(&client).txn(txn).await }
        };
        let response = self.members.call("commit", &subject, never_arrived, ask).await?;
        let revision = at(response.header());
        if response.succeeded() {
            return Ok(Outcome::Committed(revision));
        }
        let current = response.op_responses().into_iter().map(|response| match response {
            TxnOpResponse::Get(mut get) => get.take_kvs().pop().map(record),
            _ => None,
        });
        Ok(Outcome::Conflict { revision, current: current.collect() })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        // A watch learns of compaction only after it was made: a read at its start tells now.
        let options = GetOptions::new().with_count_only().with_revision(from.0 as i64);
        let ask = |mut kv: KvClient| {
            let options = options.clone();
            async move { kv.get(prefix, Some(options)).await }
        };
        let checked = self.read("watch", prefix, ask).await;
        match checked.map_err(|error| (is_future(&error), error)) {
            Ok(_) | Err((true, _)) => {}
            Err((false, error)) => return Err(self.explain(error, from).await),
        }
        let wanted = self.want(prefix, self.revision().await?);
        let live = Live {
            members: self.members.clone(),
            member: 0,
            prefix: prefix.to_owned(),
            delivered: from,
            stream: None,
            wanted,
            ready: VecDeque::new(),
        };
        Ok(stream::unfold(Some(live), Live::step).boxed())
    }

    async fn frontier(&self, prefix: &str) -> Result<Revision, Error> {
        let revision = self.revision().await?;
        self.want(prefix, revision);
        Ok(revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let ask = |mut kv: KvClient| async move { kv.compact(revision.0 as i64, None).await };
        match self.read("compact", &revision.to_string(), ask).await {
            Err(error) if is_compacted(&error) => Ok(()),
            Err(error) if is_future(&error) => Err(Error::Future { wanted: revision, newest: self.revision().await? }),
            result => result.map(drop),
        }
    }
}

/// For whoever looks after a store, not for its users.
impl Etcd {
    /// Everything to be transferred with its lifetimes, and the newest revision, at which it was so.
    pub async fn contents(&self) -> Result<(Vec<Content>, Revision), Error> {
        let end = end_of(transfer::PREFIX);
        let (mut contents, mut leases) = (Vec::new(), Vec::new());
        let (mut start, mut at) = (transfer::PREFIX.as_bytes().to_vec(), 0);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(CONTENTS_PAGE).with_revision(at);
            let ask = |mut kv: KvClient| {
                let (start, options) = (start.clone(), options.clone());
                async move { kv.get(start, Some(options)).await }
            };
            let mut page = self.read("list", transfer::PREFIX, ask).await?;
            at = if at == 0 { page.header().map_or(0, |header| header.revision()) } else { at };
            for pair in page.take_kvs() {
                start = [pair.key(), &b"\0"[..]].concat();
                leases.push(pair.lease());
                contents.push(Content { record: record(pair), lifetime: None });
            }
            if !page.more() {
                break;
            }
        }
        let mut lifetimes = HashMap::new();
        for (content, lease) in contents.iter_mut().zip(leases).filter(|(_, lease)| *lease != 0) {
            if let Entry::Vacant(unknown) = lifetimes.entry(lease) {
                unknown.insert(self.lifetime(lease).await?);
            }
            content.lifetime = lifetimes.get(&lease).copied();
        }
        Ok((contents, Revision(at as u64)))
    }

    /// Of a lease that is over by now: one second.
    async fn lifetime(&self, lease: i64) -> Result<u32, Error> {
        let ask = |client: Client| async move { client.lease_client().time_to_live(lease, None).await };
        let answer = self.members.call("read a lease of", "etcd", |_| true, ask).await?;
        Ok(u32::try_from(answer.ttl()).unwrap_or_default().max(1))
    }

    /// The database of one member, as etcdctl saves it.
    pub(crate) async fn snapshot(&self) -> Result<SnapshotStreaming, Error> {
        let ask = |client: Client| async move { client.maintenance_client().snapshot().await };
        self.members.call("copy", "etcd", |_| true, ask).await
    }

    /// Gives the disk space of forgotten revisions back. A member answers nothing meanwhile: so one after the other, and
    /// only while all are there.
    pub async fn defragment(&self) -> Result<(), Error> {
        let failed = |error: etcd_client::Error| unavailable("defragment", "etcd", &error);
        for (number, client) in self.members.clients.iter().enumerate() {
            for member in &self.members.clients {
                member.maintenance_client().status().await.map_err(failed)?;
            }
            self.members.leave(number);
            client.maintenance_client().defragment().await.map_err(failed)?;
        }
        Ok(())
    }
}

impl Etcd {
    /// etcd's words as the contract's errors.
    async fn explain(&self, error: Error, wanted: Revision) -> Error {
        if is_future(&error) {
            return self.revision().await.map_or_else(|error| error, |newest| Error::Future { wanted, newest });
        }
        if !is_compacted(&error) {
            return error;
        }
        Error::Compacted { wanted, oldest: self.oldest(wanted).await.unwrap_or(Revision(wanted.0 + 1)) }
    }

    /// etcd names the oldest revision only to a watch that came too late.
    async fn oldest(&self, wanted: Revision) -> Option<Revision> {
        let (_, client) = self.members.current();
        let mut client = client.watch_client();
        let options = WatchOptions::new().with_start_revision(wanted.0.max(1) as i64);
        let mut stream = client.watch("revision", Some(options)).await.ok()?;
        let search = async {
            while let Ok(Some(response)) = stream.message().await {
                if response.compact_revision() > 0 {
                    return Some(Revision(response.compact_revision() as u64));
                }
            }
            None
        };
        tokio::time::timeout(CALL_TIMEOUT, search).await.ok().flatten()
    }
}

/// One watch and what it takes to make it again.
struct Live {
    members: Arc<Members>,
    /// The one that it watches.
    member: usize,
    prefix: String,
    /// Everything up to here has been handed on.
    delivered: Revision,
    stream: Option<WatchStream>,
    wanted: watch::Receiver<Revision>,
    ready: VecDeque<Result<Event, Error>>,
}

impl Live {
    async fn step(this: Option<Self>) -> Option<(Result<Event, Error>, Option<Self>)> {
        let mut this = this?;
        loop {
            match this.ready.pop_front() {
                Some(Ok(event)) => return Some((Ok(event), Some(this))),
                Some(Err(error)) => return Some((Err(error), None)),
                None => this.advance().await,
            }
        }
    }

    /// Until something is ready or the connection has to be made again.
    async fn advance(&mut self) {
        let Some(mut stream) = self.stream.take() else { return self.connect().await };
        let behind = *self.wanted.borrow_and_update() > self.delivered;
        let ask_after = if behind { ASK_AGAIN } else { PROGRESS };
        let message = tokio::select! {
            message = stream.message() => Some(message),
            changed = self.wanted.changed() => {
                let asked = changed.is_ok() && stream.request_progress().await.is_ok();
                self.stream = asked.then_some(stream);
                return;
            }
            () = tokio::time::sleep(ask_after) => {
                self.stream = stream.request_progress().await.is_ok().then_some(stream);
                return;
            }
        };
        match message {
            Some(Ok(Some(response))) if !response.canceled() => {
                self.stream = Some(stream);
                self.receive(&response);
            }
            Some(Ok(Some(response))) if response.compact_revision() > 0 => {
                let oldest = Revision(response.compact_revision() as u64);
                self.ready.push_back(Err(Error::Compacted { wanted: self.delivered, oldest }));
            }
            broken => {
                tracing::debug!(prefix = %self.prefix, ?broken, "the etcd watch broke; resuming");
                self.members.leave(self.member);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn connect(&mut self) {
        let options = WatchOptions::new()
            .with_range(end_of(&self.prefix))
            .with_start_revision(self.delivered.0 as i64 + 1)
            .with_prev_key();
        let (member, client) = self.members.current();
        self.member = member;
        let mut client = client.watch_client().max_decoding_message_size(usize::MAX);
        match tokio::time::timeout(CALL_TIMEOUT, client.watch(self.prefix.as_str(), Some(options))).await {
            Ok(Ok(mut stream)) => {
                self.stream = stream.request_progress().await.is_ok().then_some(stream);
            }
            failed => {
                tracing::debug!(prefix = %self.prefix, failed = ?failed.map(drop), "no watch on etcd yet; trying again");
                self.members.leave(member);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn receive(&mut self, response: &WatchResponse) {
        let revision = at(response.header());
        if response.created() {
            return;
        }
        if response.events().is_empty() && revision > self.delivered
            || response.events().is_empty() && revision == *self.wanted.borrow()
        {
            self.delivered = revision.max(self.delivered);
            self.ready.push_back(Ok(Event::Progress(self.delivered)));
        }
        for event in response.events() {
            let converted = convert(event, self.delivered);
            if let Ok(event) = &converted {
                self.delivered = event.revision();
            }
            self.ready.push_back(converted);
        }
    }
}

fn convert(event: &etcd_client::Event, delivered: Revision) -> Result<Event, Error> {
    let gone = Error::Compacted { wanted: delivered, oldest: Revision(delivered.0 + 1) };
    let changed = event.kv().cloned().map(record).ok_or(gone.clone())?;
    let previous = event.prev_kv().cloned().map(record);
    match (event.event_type(), previous) {
        (EventType::Put, previous) => Ok(Event::Put { record: changed, previous }),
        (EventType::Delete, Some(last)) => Ok(Event::Delete { record: Record { modified: changed.modified, ..last } }),
        // Compacted away while this watch was behind: the last state is not known any more.
        (EventType::Delete, None) => Err(gone),
    }
}

fn compare(condition: &Condition) -> Compare {
    match condition {
        Condition::Absent(key) => Compare::version(&**key, CompareOp::Equal, 0),
        Condition::Unchanged(key, revision) => Compare::mod_revision(&**key, CompareOp::Equal, revision.0 as i64),
    }
}

fn record(pair: KeyValue) -> Record {
    let (created, modified) = (Revision(pair.create_revision() as u64), Revision(pair.mod_revision() as u64));
    let (key, value) = pair.into_key_value();
    Record { key: Key::from(String::from_utf8_lossy(&key)), value: Bytes::from(value), created, modified }
}

fn at(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    header.map_or(Revision::default(), |header| Revision(header.revision() as u64))
}

/// The first key after all that start with `prefix` (keys are paths: no byte of theirs is 0xff).
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

/// A client for each member, and which one is asked.
struct Members {
    clients: Vec<Client>,
    current: AtomicUsize,
    /// The last call was not answered in time.
    in_trouble: AtomicBool,
}

impl Members {
    fn current(&self) -> (usize, Client) {
        let member = self.current.load(Ordering::Relaxed);
        (member, self.clients[member].clone())
    }

    /// On to the next, unless somebody else has gone on already.
    fn leave(&self, member: usize) {
        let next = (member + 1) % self.clients.len();
        // A failure says that somebody has.
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn patience(&self, action: &str) -> Duration {
        match action {
            "list" => LIST_TIMEOUT,
            _ if self.in_trouble.load(Ordering::Relaxed) => CALL_TIMEOUT_IN_TROUBLE,
            _ => CALL_TIMEOUT,
        }
    }

    /// Asks the current member, and the others in turn for as long as `again` allows it after a failure.
    async fn call<R, F>(
        &self,
        action: &'static str,
        subject: &str,
        again: impl Fn(&etcd_client::Error) -> bool,
        ask: impl Fn(Client) -> F,
    ) -> Result<R, Error>
    where
        F: Future<Output = Result<R, etcd_client::Error>>,
    {
        let asked = async {
            for _ in 1..self.clients.len() {
                let (member, client) = self.current();
                match ask(client).await {
                    Err(error) if is_trouble(&error) => {
                        self.leave(member);
                        if !again(&error) {
                            return Err(error);
                        }
                    }
                    result => return result,
                }
            }
            let (member, client) = self.current();
            let result = ask(client).await;
            if result.as_ref().is_err_and(is_trouble) {
                self.leave(member);
            }
            result
        };
        let limit = self.patience(action);
        match tokio::time::timeout(limit, asked).await {
            Ok(result) => {
                if !result.as_ref().is_err_and(is_trouble) {
                    self.in_trouble.store(false, Ordering::Relaxed);
                }
                result.map_err(|error| unavailable(action, subject, &error))
            }
            Err(_) => {
                self.in_trouble.store(true, Ordering::Relaxed);
                self.leave(self.current().0);
                let reason = format!("etcd did not answer within {limit:?}");
                Err(Error::Unavailable { action, subject: subject.to_owned(), reason })
            }
        }
    }
}

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(usize::MAX)
}

/// The member's, not the question's.
fn is_trouble(error: &etcd_client::Error) -> bool {
    use tonic::Code::{Cancelled, DeadlineExceeded, Unavailable, Unknown};
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            matches!(status.code(), Cancelled | DeadlineExceeded | Unavailable | Unknown)
        }
        etcd_client::Error::TransportError(_) | etcd_client::Error::IoError(_) => true,
        _ => false,
    }
}

/// No connection was there, or the member has no leader to propose to and said so at once.
fn never_arrived(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    let mut causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
    status.message() == "etcdserver: no leader" || causes.any(|cause| cause.is::<tonic::ConnectError>())
}

fn unavailable(action: &'static str, subject: &str, error: &etcd_client::Error) -> Error {
    let reason = match error {
        etcd_client::Error::GRpcStatus(status) => with_cause(status.message(), status),
        other => with_cause(&other.to_string(), other),
    };
    Error::Unavailable { action, subject: subject.to_owned(), reason }
}

/// What was said, and what was at the bottom of it: "transport error" alone says nothing.
fn with_cause(said: &str, error: &dyn std::error::Error) -> String {
    let deepest = std::iter::successors(error.source(), |error| error.source()).last().map(ToString::to_string);
    match deepest.filter(|cause| !said.contains(cause)) {
        Some(cause) => format!("{said}: {cause}"),
        None => said.to_owned(),
    }
}

fn is_compacted(error: &Error) -> bool {
    matches!(error, Error::Unavailable { reason, .. } if reason.contains("required revision has been compacted"))
}

fn is_future(error: &Error) -> bool {
    matches!(error, Error::Unavailable { reason, .. } if reason.contains("required revision is a future revision"))
}
