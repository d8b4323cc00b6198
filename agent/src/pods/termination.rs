//! A container's last words: the file it wrote, or the end of its log where the pod asks for that.

use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// Upstream's bounds: of the message, and of the log's tail in bytes and lines.
const MESSAGE: u64 = 4096;
const TAIL: u64 = 2048;
const LINES: usize = 80;

/// None where the container left no message: the runtime's own then stands.
pub async fn message(file: Option<&str>, log: Option<&str>) -> Option<String> {
    if let Some(path) = file
        && let Some(message) = read(path, MESSAGE, false).await.filter(|message| !message.is_empty())
    {
        return Some(message);
    }
    read(log?, TAIL * 2, true).await.map(|log| tail(&log))
}

async fn read(path: &str, limit: u64, from_end: bool) -> Option<String> {
    let mut file = tokio::fs::File::open(path).await.ok()?;
    let length = file.metadata().await.ok()?.len();
    if from_end && length > limit {
        file.seek(std::io::SeekFrom::Start(length - limit)).await.ok()?;
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).await.ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes the payload out of CRI's log lines: `<time> <stream> <tags> <text>`.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let text: String = lines[lines.len().saturating_sub(LINES)..].iter().flat_map(|line| [*line, "\n"]).collect();
    let cut = text.len().saturating_sub(TAIL as usize);
    let start = (cut..=text.len()).find(|&index| text.is_char_boundary(index)).unwrap_or(text.len());
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_text_without_times_and_streams() {
        let log = "2026-01-01T00:00:00Z stdout F first\n2026-01-01T00:00:01Z stderr F second line\n";
        assert_eq!(tail(log), "first\nsecond line\n");
    }
}
