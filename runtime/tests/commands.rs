//! Commands run to their end, and nothing a command does reaches beyond its limits.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use common::{Fixture, command, fixture, fixture_with, output, soon, until};
use tokio::io::AsyncWriteExt;
use wasmk_runtime::{
    Error, Exit, ExitReason, KILLED, LogSink, Mount, Program, ProgramKind, Spec, Stdin, StopSignal, Usage,
};

const LOOP: &str = "(loop $again (br $again))";
const FLOOD: &str = "(loop $again (call $say (i32.const 1024) (i32.const 10)) (br $again))";

async fn run(program: &Program, spec: Spec) -> Exit {
    soon(program.run(spec, StopSignal::new())).await.unwrap()
}

async fn run_text(fixture: &Fixture, code: &str, spec: Spec) -> Exit {
    run(&*fixture.module(&command(code)).await, spec).await
}

#[tokio::test]
async fn exit_status_and_output_come_back() {
    let fixture = fixture();
    let check = async |code: &str, status: i32, said: &str| {
        let (stdout, _, spec) = output();
        let exit = run_text(&fixture, code, spec).await;
        assert_eq!(exit, Exit { code: status, reason: ExitReason::Completed }, "{code}");
        assert_eq!(stdout.text(), said);
    };
    check("", 0, "").await;
    check("(call $say (i32.const 1024) (i32.const 10))", 0, "hello wat\n").await;
    check("(call $exit (i32.const 0))", 0, "").await;
    check("(call $say (i32.const 1024) (i32.const 5)) (call $exit (i32.const 42))", 42, "hello").await;
}

#[tokio::test]
async fn a_trap_names_its_cause_and_place() {
    let fixture = fixture();
    let check = async |code: &str, expect: &str| {
        let exit = run_text(&fixture, code, Spec::default()).await;
        let ExitReason::Trapped { message, backtrace } = &exit.reason else {
            panic!("{code}: {exit:?}");
        };
        assert!(message.contains(expect), "{message}");
        assert!(backtrace.contains("main"), "{backtrace}");
        assert_eq!(exit.code, 134);
    };
    check("unreachable", "unreachable").await;
    check("(drop (i32.load (i32.const -1)))", "out of bounds memory access").await;
    check("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "integer divide by zero").await;
    check("(call $main)", "call stack exhausted").await;
    assert_eq!(fixture.runtime.metrics().traps, 4);
    assert_eq!(fixture.runtime.metrics().slots_in_use, 0);
}

#[tokio::test]
async fn a_loop_ends_at_its_time() {
    let fixture = fixture();
    let spec = Spec { run_timeout: Some(Duration::from_millis(50)), ..Spec::default() };
    let exit = run_text(&fixture, LOOP, spec).await;
    assert_eq!(exit, Exit { code: KILLED, reason: ExitReason::TimedOut });
    assert_eq!(fixture.runtime.metrics().timeouts, 1);
}

#[tokio::test]
async fn a_loop_ends_when_stopped() {
    let fixture = fixture();
    let program = fixture.module(&command(LOOP)).await;
    let (stop, usage) = (StopSignal::new(), Arc::new(Usage::default()));
    let spec = Spec { usage: usage.clone(), ..Spec::default() };
    let running = tokio::spawn({
        let (program, stop) = (program.clone(), stop.clone());
        async move { program.run(spec, stop).await }
    });
    until("the guest computes", || (usage.cpu() > Duration::ZERO).then_some(())).await;
    stop.stop(Duration::ZERO);
    let exit = soon(running).await.unwrap().unwrap();
    assert_eq!(exit, Exit { code: KILLED, reason: ExitReason::Stopped });
    assert_eq!((usage.instances(), usage.memory()), (0, 0));
}

#[tokio::test]
async fn dropping_a_run_ends_the_guest() {
    let fixture = fixture();
    let program = fixture.module(&command(LOOP)).await;
    let run = program.run(Spec::default(), StopSignal::new());
    assert!(tokio::time::timeout(Duration::from_millis(20), run).await.is_err());
    until("its slot is free", || (fixture.runtime.metrics().slots_in_use == 0).then_some(())).await;
}

#[tokio::test]
async fn memory_beyond_the_limit_is_refused() {
    let fixture = fixture();
    // 65,536 pages are 4 GiB. A guest that takes the refusal well goes on; one that does not has run out.
    let wish = "(if (i32.eq (memory.grow (i32.const 65000)) (i32.const -1)) (then";
    let spec = |limit| Spec { memory_limit: Some(limit), ..Spec::default() };
    let exit = run_text(&fixture, &format!("{wish} (call $exit (i32.const 0))))"), spec(1 << 20)).await;
    assert!(exit.success(), "{exit:?}");
    let exit = run_text(&fixture, &format!("{wish} (unreachable)))"), spec(1 << 20)).await;
    assert_eq!(exit, Exit { code: KILLED, reason: ExitReason::OutOfMemory });
    let exit = run_text(&fixture, &format!("{wish} (call $exit (i32.const 2))))"), spec(1 << 20)).await;
    assert_eq!(exit.reason, ExitReason::OutOfMemory);
    let exit = run_text(&fixture, "", spec(1000)).await;
    assert_eq!(exit.reason, ExitReason::OutOfMemory, "it needs four pages to start");
    assert_eq!(fixture.runtime.metrics().memory, 0);
}

#[tokio::test]
async fn tables_grow_to_their_bound_only() {
    let fixture = fixture();
    let grow = |elements: u32| {
        format!(
            "(module (table $t 1 funcref) (memory (export \"memory\") 1) (func (export \"_start\") \
             (if (i32.eq (table.grow $t (ref.null func) (i32.const {elements})) (i32.const -1)) (then unreachable))))"
        )
    };
    assert!(run(&*fixture.module(&grow(1000)).await, Spec::default()).await.success());
    let exit = run(&*fixture.module(&grow(100_000_000)).await, Spec::default()).await;
    assert!(
        matches!(exit.reason, ExitReason::Trapped { .. }),
        "it is refused, and the guest gives up: {exit:?}"
    );
}

#[tokio::test]
async fn the_budget_of_all_guests_is_one() {
    let fixture = fixture_with(|settings| settings.memory_budget = Some(1 << 20));
    let hold = fixture.module(&command(&format!("(drop (memory.grow (i32.const 10))) {LOOP}"))).await;
    let stop = StopSignal::new();
    let running = tokio::spawn({
        let (program, stop) = (hold.clone(), stop.clone());
        async move { program.run(Spec::default(), stop).await }
    });
    until("it has its memory", || (fixture.runtime.metrics().memory == 14 << 16).then_some(())).await;
    let exit = run_text(&fixture, "", Spec::default()).await;
    assert_eq!(exit.reason, ExitReason::OutOfMemory);
    stop.kill();
    soon(running).await.unwrap().unwrap();
    assert!(run_text(&fixture, "", Spec::default()).await.success());
}

/// Takes nothing until it is opened.
#[derive(Default)]
struct Gate {
    open: std::sync::atomic::AtomicBool,
    bytes: AtomicU64,
    waker: futures::task::AtomicWaker,
}

impl LogSink for Gate {
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        self.waker.register(cx.waker());
        if self.open.load(Ordering::SeqCst) { Poll::Ready(100) } else { Poll::Pending }
    }

    fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= 100, "more than there was room for");
        self.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_full_sink_holds_its_own_guest_alone() {
    let fixture = fixture();
    let flood = fixture.module(&command(FLOOD)).await;
    let (gate, stop, usage) = (Arc::new(Gate::default()), StopSignal::new(), Arc::new(Usage::default()));
    let spec = Spec { stdout: gate.clone(), usage: usage.clone(), ..Spec::default() };
    let running = tokio::spawn({
        let (program, stop) = (flood.clone(), stop.clone());
        async move { program.run(spec, stop).await }
    });
    until("it has started", || (usage.instances() == 1).then_some(())).await;
    for _ in 0..10 {
        assert!(run_text(&fixture, "", Spec::default()).await.success());
    }
    assert_eq!(gate.bytes.load(Ordering::SeqCst), 0);
    gate.open.store(true, Ordering::SeqCst);
    gate.waker.wake();
    until("the flood flows", || (gate.bytes.load(Ordering::SeqCst) > 10_000).then_some(())).await;
    stop.kill();
    assert_eq!(soon(running).await.unwrap().unwrap().reason, ExitReason::Stopped);
}

#[tokio::test]
async fn spinning_guests_leave_the_others_their_turn() {
    let fixture = fixture();
    let spin = fixture.module(&command(LOOP)).await;
    let stop = StopSignal::new();
    let spinning: Vec<_> = (0..8)
        .map(|_| {
            let (program, stop) = (spin.clone(), stop.clone());
            tokio::spawn(async move { program.run(Spec::default(), stop).await })
        })
        .collect();
    until("all spin", || (fixture.runtime.metrics().slots_in_use == 8).then_some(())).await;
    for _ in 0..5 {
        assert!(
            run_text(&fixture, "(call $say (i32.const 1024) (i32.const 1))", Spec::default()).await.success()
        );
    }
    stop.kill();
    for guest in spinning {
        assert_eq!(soon(guest).await.unwrap().unwrap().reason, ExitReason::Stopped);
    }
}

#[tokio::test]
async fn a_share_of_the_processor_is_kept() {
    let fixture = fixture();
    let program = fixture.module(&command(LOOP)).await;
    let usage = Arc::new(Usage::default());
    let spec = Spec {
        cpu_millis: Some(100),
        run_timeout: Some(Duration::from_millis(1000)),
        usage: usage.clone(),
        ..Spec::default()
    };
    assert_eq!(run(&program, spec).await.reason, ExitReason::TimedOut);
    // A tenth of a second is its share and 10 ms its burst; a slow machine can only make it less.
    assert!(usage.cpu() < Duration::from_millis(300), "{:?}", usage.cpu());
}

#[tokio::test]
async fn standard_input_is_read_and_its_end_is_seen() {
    let fixture = fixture();
    // Reads until the end; the status is the number of bytes.
    let count = r"(local $n i32)
        (i32.store (i32.const 0) (i32.const 2048)) (i32.store (i32.const 4) (i32.const 100))
        (loop $again
          (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
          (local.set $n (i32.add (local.get $n) (i32.load (i32.const 8))))
          (br_if $again (i32.load (i32.const 8))))
        (call $exit (local.get $n))";
    assert_eq!(run_text(&fixture, count, Spec::default()).await.code, 0);
    let text = Spec { stdin: Some(Stdin::new(&b"twelve bytes"[..])), ..Spec::default() };
    assert_eq!(run_text(&fixture, count, text).await.code, 12);

    let (mut writer, reader) = tokio::io::duplex(64);
    let program = fixture.module(&command(count)).await;
    let stop = StopSignal::new();
    let running = tokio::spawn({
        let (program, stop) = (program.clone(), stop.clone());
        let spec = Spec { stdin: Some(Stdin::new(reader)), ..Spec::default() };
        async move { program.run(spec, stop).await }
    });
    writer.write_all(b"abc").await.unwrap();
    until("the guest waits for more", || (fixture.runtime.metrics().slots_in_use == 1).then_some(())).await;
    // Stopping ends the input first, and this guest leaves by itself.
    stop.stop(common::PATIENCE);
    let exit = soon(running).await.unwrap().unwrap();
    assert_eq!(exit.reason, ExitReason::Completed);
    assert!(exit.code <= 3, "{exit:?}");
}

#[tokio::test]
async fn a_free_slot_is_waited_for_but_not_for_ever() {
    let fixture = fixture_with(|settings| {
        settings.max_instances = 1;
        settings.instance_wait = Duration::from_millis(30);
    });
    let spin = fixture.module(&command(LOOP)).await;
    let stop = StopSignal::new();
    let running = tokio::spawn({
        let (program, stop) = (spin.clone(), stop.clone());
        async move { program.run(Spec::default(), stop).await }
    });
    until("it runs", || (fixture.runtime.metrics().slots_in_use == 1).then_some(())).await;
    let refused = spin.run(Spec::default(), StopSignal::new()).await;
    assert!(matches!(refused, Err(Error::Busy { most: 1, .. })), "{refused:?}");
    stop.kill();
    soon(running).await.unwrap().unwrap();
    assert!(run_text(&fixture, "", Spec::default()).await.success());
    assert_eq!(fixture.runtime.metrics().refused, 1);
}

#[tokio::test]
async fn mounts_that_cannot_be_opened_are_named() {
    let fixture = fixture();
    let program = fixture.module(&command("")).await;
    assert_eq!(program.kind(), ProgramKind::Module);
    let mount = Mount { host: fixture.dir.path().join("absent"), guest: "/data".into(), read_only: true };
    let error =
        program.run(Spec { mounts: vec![mount], ..Spec::default() }, StopSignal::new()).await.unwrap_err();
    assert!(error.to_string().contains("/data") && error.to_string().contains("absent"), "{error}");
}
