use std::time::Duration;

use futures::StreamExt;

use super::*;

fn name(run: u32) -> LogName<'static> {
    LogName { namespace: "default", pod: "p", uid: "u", container: "c", run }
}

async fn text(logs: &Logs, options: LogOptions) -> String {
    let parts: Vec<_> = logs.read(&name(0), options).unwrap().map(Result::unwrap).collect().await;
    String::from_utf8(parts.concat()).unwrap()
}

#[tokio::test]
async fn options_choose_lines() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().into(), dir.path().join("containers"));
    let writer = logs.create(&name(0));
    for (second, line) in ["one", "two", "three"].iter().enumerate() {
        let time: wasmk_api::Timestamp = format!("2026-01-01T00:00:0{second}Z").parse().unwrap();
        writer.line(time, Stream::Stdout, line.as_bytes());
    }
    let since = "2026-01-01T00:00:01Z".parse().ok();
    let all = LogOptions::default();
    for (options, expect) in [
        (all.clone(), "one\ntwo\nthree\n"),
        (LogOptions { tail: Some(2), ..all.clone() }, "two\nthree\n"),
        (LogOptions { tail: Some(0), ..all.clone() }, ""),
        (LogOptions { tail: Some(9), ..all.clone() }, "one\ntwo\nthree\n"),
        (LogOptions { since, ..all.clone() }, "two\nthree\n"),
        (LogOptions { limit: Some(5), ..all.clone() }, "one\nt"),
        (LogOptions { tail: Some(1), timestamps: true, ..all }, "2026-01-01T00:00:02.000000000Z three\n"),
    ] {
        assert_eq!(text(&logs, options.clone()).await, expect, "{options:?}");
    }
}

#[tokio::test]
async fn pieces_become_lines_and_a_rest_is_kept_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().into(), dir.path().join("containers"));
    let writer = logs.create(&name(0));
    writer.write(Stream::Stdout, b"hel");
    writer.write(Stream::Stderr, b"oops\n");
    writer.write(Stream::Stdout, b"lo\n\nrest");
    let long = "x".repeat(LINE_BYTES + 10);
    writer.write(Stream::Stderr, long.as_bytes());
    writer.close();
    assert_eq!(
        text(&logs, LogOptions::default()).await,
        format!("oops\nhello\n\n{}rest{}", &long[..LINE_BYTES], "x".repeat(10))
    );
}

#[tokio::test]
async fn follow_ends_with_the_run_and_crosses_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().into(), dir.path().join("containers"));
    let writer = logs.create(&name(0));
    let mut stream = logs.read(&name(0), LogOptions { follow: true, ..LogOptions::default() }).unwrap();
    writer.write(Stream::Stdout, b"first\n");
    assert_eq!(stream.next().await.unwrap().unwrap(), "first\n");
    let line = vec![b'y'; 8191];
    let count = FILE_BYTES as usize / 8192 + 5;
    let reading = tokio::spawn(async move {
        let mut total = 0;
        while let Some(part) = stream.next().await {
            total += part.unwrap().len();
        }
        total
    });
    for _ in 0..count {
        writer.line(wasmk_api::Timestamp::now(), Stream::Stdout, &line);
        tokio::task::yield_now().await;
    }
    writer.close();
    let total = tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
    assert_eq!(total, count * 8192);
}

#[test]
fn files_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().into(), dir.path().join("containers"));
    let writer = logs.create(&name(0));
    let block = [b'z'; 8192];
    for _ in 0..(FILE_BYTES as usize / 8192) * 4 {
        writer.line(wasmk_api::Timestamp::now(), Stream::Stdout, &block);
    }
    let folder = dir.path().join("default_p_u/c");
    let sizes: Vec<u64> =
        std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), FILES as usize);
    assert!(sizes.iter().all(|s| *s < FILE_BYTES + 20_000), "{sizes:?}");
}

#[tokio::test]
async fn lines_from_before_the_pod_are_in_its_log_once() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().into(), dir.path().join("containers"));
    let ring = LogRing::default();
    ring.write(Stream::Stdout, b"early\n");
    let first = logs.create(&name(0));
    ring.attach(first.clone());
    ring.write(Stream::Stdout, b"during\n");
    assert_eq!(text(&logs, LogOptions::default()).await, "early\nduring\n");
    ring.detach(&first);
    ring.write(Stream::Stdout, b"between\n");
    let second = logs.create(&LogName { pod: "q", ..name(0) });
    ring.attach(second);
    let stream = logs.read(&LogName { pod: "q", ..name(0) }, LogOptions::default()).unwrap();
    let parts: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(parts.concat(), b"between\n");
    assert_eq!(ring.since(0).0.len(), 3);
    for n in 0..RING_LINES * 2 {
        ring.write(Stream::Stderr, format!("{n}\n").as_bytes());
    }
    assert_eq!(ring.since(0).0.len(), RING_LINES);
}

#[test]
fn links_to_logs_come_and_go_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().into(), dir.path().join("containers"));
    for run in 0..3 {
        logs.create(&name(run)).line(wasmk_api::Timestamp::now(), Stream::Stdout, b"hello");
        logs.link(&name(run), &format!("id{run}")).unwrap();
    }
    let listed = || {
        let entries = std::fs::read_dir(dir.path().join("containers")).unwrap().flatten();
        let mut all: Vec<_> = entries.map(|e| e.path()).collect();
        all.sort();
        all
    };
    assert_eq!(listed().len(), 2, "that of the run before the previous one is gone");
    assert!(std::fs::read_to_string(&listed()[0]).unwrap().ends_with(" stdout F hello\n"));
    let LogName { namespace, pod, uid, .. } = name(0);
    logs.remove(namespace, pod, uid);
    assert!(listed().is_empty());
}

#[tokio::test]
async fn who_says_nothing_has_a_file_when_somebody_reads_it_or_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().into(), dir.path().join("containers"));
    let exists = || dir.path().join("default_p_u").exists();
    let latest = || logs.latest("default", "p", "u", "c");
    let first = logs.create(&name(0));
    logs.link(&name(0), "id0").unwrap();
    assert_eq!((exists(), latest()), (false, Some(0)));
    assert_eq!((text(&logs, LogOptions::default()).await.as_str(), exists()), ("", true));
    assert!(dir.path().join("containers/p_default_c-id0.log").exists());
    logs.remove("default", "p", "u");
    first.line(wasmk_api::Timestamp::now(), Stream::Stdout, b"too late");
    first.close();
    assert_eq!((exists(), latest()), (false, None));

    let second = logs.create(&name(1));
    second.close();
    drop(second);
    assert_eq!((exists(), latest()), (true, Some(1)));
    assert!(
        logs.read(&name(1), LogOptions::default()).is_ok()
            && logs.read(&name(0), LogOptions::default()).is_err()
    );
}
