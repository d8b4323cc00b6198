//! One contract, two engines: every promise in `promises.rs` is a test of the embedded store and a test of etcd.
//!
//! etcd's binary is `$LEME_ETCD` or `etcd` on the PATH. Where there is none its half says so on stderr and does
//! nothing, unless `LEME_TEST_ETCD=1` demands it: then it fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod etcd_server;
mod promises;

macro_rules! contract {
    ($($promise:ident,)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $promise() {
                let directory = tempfile::tempdir().unwrap();
                let store = leme_store::embedded::Embedded::open(directory.path().join("state.db")).unwrap();
                crate::promises::$promise(std::sync::Arc::new(store)).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $promise() {
                let Some(server) = crate::etcd_server::Server::start().await else { return };
                crate::promises::$promise(server.store().await).await;
            })*
        }
    };
}

contract! {
    a_commit_moves_the_revision_by_one,
    a_conflict_shows_what_is_there_and_writes_nothing,
    a_transaction_is_all_or_nothing_at_one_revision,
    racing_increments_lose_no_update,
    an_acknowledged_write_is_read_by_everybody,
    a_watch_misses_nothing_while_many_write,
    a_watch_replays_the_past_and_goes_on_live,
    pages_show_one_revision_while_writers_run,
    a_list_in_the_future_or_before_compaction_is_refused,
    compaction_keeps_the_present_and_ends_old_watches,
    a_cancelled_commit_is_whole_or_absent,
    leases_expire_and_only_they,
    the_frontier_is_reached_without_another_write,
    a_cache_is_consistent_with_acknowledged_writes,
    cache_watchers_see_every_change_once_in_order,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_watch_survives_an_etcd_restart() {
    let Some(mut server) = etcd_server::Server::start().await else { return };
    let store = server.store().await;
    let from = store.revision().await.unwrap();
    let watch = store.watch("/t/", from).await.unwrap();
    promises::put(&*store, "/t/before", "1").await;
    server.kill(0);
    server.spawn(0);
    server.ready().await;
    let store = server.store().await;
    let last = promises::put(&*store, "/t/after", "2").await;
    let events = promises::collect_until(watch, last).await;
    let keys: Vec<_> = events.iter().filter_map(|event| event.key()).map(|key| key.to_string()).collect();
    assert_eq!(keys, ["/t/before", "/t/after"]);
}
