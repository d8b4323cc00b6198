use super::*;
use crate::Measurement;

fn rows() -> Vec<Row> {
    let sized = |subject: &str, services, value: f64| {
        let measurement = Measurement::new("same node: new connections", subject, "1/s", vec![value; 6]);
        measurement.with_services(services).against("pod's own <address>", vec![1000.0; 6])
    };
    let plain = Measurement::new("programming", "leme", "s", vec![0.2; 3]).against("nft alone", vec![4.0; 3]);
    let all = [sized("leme", 1, 990.0), sized("leme", 10_000, 980.0), sized("rules", 1, 900.0), plain];
    all.into_iter().filter_map(Row::of).collect()
}

fn html() -> String {
    let machine =
        Machine { processors: 2, model: "a & b".into(), memory_gib: 4.0, kernel: "6.18".into(), load: "0.10".into() };
    let rows = rows();
    let commands = ["measure --it".to_owned()];
    let report = Report {
        title: "T",
        about: "A",
        subject: "commit",
        machine: &machine,
        date: "2026-11-25",
        commands: &commands,
        rows: &rows,
    };
    report.html()
}

#[test]
fn a_page_stands_alone_and_escapes_what_it_is_told() {
    let html = html();
    assert!(!html.contains("<script") && !html.contains("http://") && !html.contains("https://"));
    assert!(html.contains("a &amp; b") && html.contains("pod's own &lt;address&gt;"));
    for tag in ["svg", "figure", "table", "tr", "td", "ul", "details", "dl", "div", "text", "circle"] {
        let (opened, closed) = (html.matches(&format!("<{tag}")).count(), html.matches(&format!("</{tag}>")).count());
        assert_eq!(opened, closed, "{tag}");
    }
}

#[test]
fn every_metric_is_drawn_and_every_row_is_in_the_table() {
    let html = html();
    assert!(html.contains("With more Services loaded") && html.contains("Side by side") && html.contains("Figures"));
    assert_eq!(html.matches("<tr>").count(), 1 + rows().len());
    // Two numbers of Services for one subject; the other has one, which makes no curve, and so no key.
    assert_eq!(html.matches("<polyline").count(), 1);
    assert!(html.contains("<span>leme</span>") && !html.contains("<span>rules</span>"));
    assert!(html.contains("4.00 s") && html.contains("nft alone"));
}
