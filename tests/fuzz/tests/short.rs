use leme_tests_fuzz::Session;

/// Always the same two hundred thousand packets.
#[test]
fn whatever_comes_is_decided_about_and_finds_its_way_back() {
    let mut session = Session::new();
    for seed in 0..3_200 {
        session.run(seed).unwrap_or_else(|error| panic!("{error:?}"));
    }
}
