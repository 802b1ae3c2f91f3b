//! A program that has got out of its guest: it is native code inside the walls, and tries what such code would try.
//! The test starts itself as that program, and as the worker of real guests.

#![allow(clippy::print_stdout, reason = "it is how the program inside says what it could do")]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use wasmk_runtime::{Runtime, Spec, StopSignal, Tail};
use wasmk_wall::{Directory, Error, Room, Settings, Wall};

/// A user that walls put up as root are to lead to.
const OTHER_USER: u32 = 1_879_048_200;
/// Somebody who is not root.
const NOBODY: u32 = 65_534;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("inside") => inside(&args[2..]),
        Some("worker") => return wasmk_wall::worker(),
        _ => {
            let root = nix::unistd::geteuid().is_root();
            escapes(root.then_some(OTHER_USER), None);
            if root {
                escapes(None, Some(NOBODY));
            }
            let runtime =
                tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
            runtime.block_on(workers(root));
            println!("all walls hold");
        }
    }
    ExitCode::SUCCESS
}

/// What can be done inside, by name; `0` is what succeeds, else the error's number.
fn escapes(user: Option<u32>, start_as: Option<u32>) {
    let dir = tempfile::tempdir().expect("a directory");
    let place = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).expect("a directory");
        std::fs::write(path.join("file"), name).expect("a file");
        for (path, mode) in [(path.clone(), 0o777), (path.join("file"), 0o666)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
        }
        path
    };
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let (own, read_only, other) = (place("own"), place("read-only"), place("other"));
    let api = TcpListener::bind("127.0.0.1:0").expect("a port");
    // Others than root need not be able to reach where this program was built.
    let program = dir.path().join("program");
    std::fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy of it");
    let mut command = Command::new(program);
    command
        .args(["inside", &user.map(|id| id.to_string()).unwrap_or_default()])
        .args([&own, &read_only, &other])
        .arg(api.local_addr().expect("an address").port().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if let Some(id) = start_as {
        command.uid(id).gid(id);
    }
    let out = command.output().expect("this program starts");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}: {said}", out.status);
    let did: BTreeMap<&str, i32> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(k, v)| (k, v.parse().unwrap_or(-1)))
        .collect();
    let mut allowed: Vec<&str> =
        did.iter().filter(|(_, error)| **error == 0).map(|(name, _)| *name).collect();
    allowed.sort_unstable();
    let expect = ["read-own", "read-the-read-only", "start-a-thread", "write-own"];
    assert_eq!(allowed, expect, "as user {user:?}, started by {start_as:?}: {said}");
    assert_eq!(did.len(), 24, "{said}");
    assert!(other.join("file").is_file() && !own.join("program").exists());
}

/// The program inside.
fn inside(args: &[String]) {
    let [user, own, read_only, other, port] = args else {
        panic!("five arguments are expected");
    };
    let directory = |path: &String, read_only| Directory { path: path.into(), read_only };
    let room = Room {
        user: user.parse().ok(),
        parent: None,
        directories: vec![directory(own, false), directory(read_only, true)],
    };
    let parent = nix::unistd::getppid().as_raw();
    let mut raised = wasmk_wall::raise(&room).expect("walls");
    assert_eq!(raised.standing.user, room.user);
    assert!(raised.standing.landlock > 0 && raised.standing.seccomp, "{}", raised.standing);
    // Nobody makes sockets for it.
    drop(raised.sockets.take());
    raised.seal().expect("the last wall");
    let file = |dir: &String| PathBuf::from(dir).join("file");
    files(&file(own), &file(read_only), &file(other));
    processes(parent);
    system(port);
}

fn report(name: &str, result: std::io::Result<()>) {
    let error = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(-2));
    println!("{name} {error}");
}

fn files(own: &Path, read_only: &Path, other: &Path) {
    let read = |name, path: &Path| report(name, std::fs::read(path).map(drop));
    read("read-own", own);
    read("read-the-read-only", read_only);
    read("read-another's", other);
    read("read-passwords", Path::new("/etc/shadow"));
    read("read-users", Path::new("/etc/passwd"));
    read("read-own-memory", Path::new("/proc/self/maps"));
    read("read-this-program", Path::new("/proc/self/exe"));
    report("list-the-root", std::fs::read_dir("/").map(drop));
    let write = |name, path: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(path);
        report(name, file.and_then(|mut file| file.write_all(b"changed")));
    };
    write("write-own", own);
    write("write-the-read-only", read_only);
    write("write-another's", other);
    report("link-to-another's", std::fs::hard_link(other, own.with_file_name("program")));
}

#[allow(unsafe_code)]
fn processes(parent: i32) {
    report("start-a-thread", std::thread::Builder::new().spawn(|| ()).map(drop));
    report("run-a-program", Command::new("/bin/true").status().map(drop));
    let path = c"/bin/true".as_ptr();
    let none = [std::ptr::null::<libc::c_char>()];
    // SAFETY: the path and the two empty lists live for the whole call.
    call("become-a-program", unsafe { libc::execve(path, none.as_ptr(), none.as_ptr()) }.into());
    // SAFETY: the call takes numbers only; a child would leave at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the call ends the process.
        unsafe { libc::_exit(0) };
    }
    call("fork", child.into());
    // SAFETY: the call takes numbers and no pointers that are looked at.
    call("trace-the-agent", unsafe { libc::ptrace(libc::PTRACE_SEIZE, parent, 0, 0) });
    // SAFETY: the call takes numbers only.
    call("signal-the-agent", unsafe { libc::kill(parent, 0) }.into());
    let mut byte = 0_u8;
    let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: 0x1000 as *mut libc::c_void, iov_len: 1 };
    // SAFETY: the local vector is to a live local; the other is looked at in another process, if at all.
    call("read-the-agent", unsafe {
        libc::process_vm_readv(parent, &raw const here, 1, &raw const there, 1, 0)
    } as i64);
    // SAFETY: the call takes numbers only.
    call("become-root", unsafe { libc::setresuid(0, 0, 0) }.into());
}

#[allow(unsafe_code)]
fn system(port: &str) {
    let (nothing, here) = (c"none".as_ptr(), c"/".as_ptr());
    // SAFETY: the strings live for the whole call; there are no options.
    let mounted = unsafe { libc::mount(nothing, here, c"tmpfs".as_ptr(), 0, std::ptr::null()) };
    call("mount", mounted.into());
    // SAFETY: the call takes numbers only.
    call("make-a-namespace", unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into());
    // SAFETY: the call takes numbers, and no pointer that is looked at.
    call("bpf", unsafe { libc::syscall(libc::SYS_bpf, 0, 0_usize, 0) });
    let api = std::net::TcpStream::connect(format!("127.0.0.1:{port}"));
    report("connect-to-the-api", api.map(drop));
}

fn call(name: &str, result: i64) {
    let failed = std::io::Error::last_os_error();
    report(name, if result < 0 { Err(failed) } else { Ok(()) });
}

/// Real guests in workers.
async fn workers(root: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let bounds = wasmk_runtime::Settings { max_instances: 8, ..wasmk_runtime::Settings::new(dir.path()) };
    let runtime = Runtime::new(bounds.clone()).expect("a runtime");
    let settings = Settings {
        program: std::env::current_exe().expect("this program"),
        arguments: vec!["worker".into()],
        bounds,
        users: root.then(|| dir.path().join("users")),
    };
    let wall = Wall::new(runtime.clone(), settings.clone());
    let standing = wall.probe().await.expect("a worker");
    assert!(standing.user.is_some() == root && standing.landlock > 0 && standing.sockets, "{standing}");
    guests_run(&wall, &runtime).await;
    a_lost_worker_is_its_groups_alone(&wall, &runtime).await;
    strangers_are_no_workers(&runtime, &settings).await;
}

/// Says something and exits with a status, or computes for ever.
const SAYS: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1) (data (i32.const 16) "hello\n")
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 6))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $exit (i32.const 7))))"#;
const SPINS: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

async fn prepare(runtime: &Runtime, text: &str) -> Arc<wasmk_runtime::Program> {
    let bytes = wat::parse_str(text).expect("a module");
    let digest = wasmk_runtime::digest(&bytes);
    runtime.prepare_bytes(bytes.into(), &digest).await.expect("a program")
}

async fn guests_run(wall: &Wall, runtime: &Runtime) {
    let program = prepare(runtime, SAYS).await;
    let output = Arc::new(Tail::new(100));
    let spec = Spec { stdout: output.clone(), ..Spec::default() };
    let exit = wall.run("a", &program, spec.clone(), StopSignal::new()).await.expect("a run");
    assert_eq!((exit.code, output.text().as_str()), (7, "hello\n"));
    // The worker is there already, and counts in the runtime's figures.
    let exit = wall.run("a", &program, spec, StopSignal::new()).await.expect("a run");
    assert_eq!((exit.code, runtime.metrics().instances), (7, 2));

    let stop = StopSignal::new();
    stop.kill();
    let spins = prepare(runtime, SPINS).await;
    let exit = wall.run("a", &spins, Spec::default(), stop).await.expect("a run");
    assert_eq!(exit.reason, wasmk_runtime::ExitReason::Stopped);
}

/// The workers of this process.
fn children() -> Vec<u32> {
    let own = std::process::id().to_string();
    let parent = |stat: &str| stat.rsplit_once(") ")?.1.split(' ').nth(1).map(str::to_owned);
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            parent(&stat).as_ref() == Some(&own)
        })
        .collect()
}

async fn a_lost_worker_is_its_groups_alone(wall: &Wall, runtime: &Runtime) {
    let spins = prepare(runtime, SPINS).await;
    let run = |group: &'static str, stop: StopSignal| {
        let (wall, spins) = (wall.clone(), spins.clone());
        tokio::spawn(async move { wall.run(group, &spins, Spec::default(), stop).await })
    };
    let before = children();
    let (stop, lost) = (StopSignal::new(), run("lost", StopSignal::new()));
    let mut victim = None;
    for _ in 0..1000 {
        victim = children().into_iter().find(|id| !before.contains(id));
        if victim.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let victim = i32::try_from(victim.expect("a second worker")).expect("a number");
    let other = run("a", stop.clone());
    while runtime.metrics().instances < 4 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), nix::sys::signal::Signal::SIGKILL)
        .expect("it is there");
    let error = lost.await.expect("a task").expect_err("its worker is gone");
    assert!(matches!(&error, Error::Lost(why) if why == "signal 9"), "{error}");
    assert!(!other.is_finished());
    stop.kill();
    assert_eq!(other.await.expect("a task").expect("a run").code, wasmk_runtime::KILLED);
    // The next guest has a worker again.
    let says = prepare(runtime, SAYS).await;
    assert_eq!(wall.run("lost", &says, Spec::default(), StopSignal::new()).await.expect("a run").code, 7);
}

async fn strangers_are_no_workers(runtime: &Runtime, settings: &Settings) {
    for (line, expect) in [
        ("exit 3", "failed to fill"),
        ("echo no walls here >&2", "no walls here"),
        ("head -c 100 /dev/zero >&0", ""),
    ] {
        let settings = Settings {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), line.into()],
            ..settings.clone()
        };
        let error = Wall::new(runtime.clone(), settings).probe().await.expect_err("no worker");
        let text = error.to_string();
        assert!(matches!(error, Error::Spawn(_)), "{line}: {text}");
        assert!(expect == "failed to fill" || text.contains(expect), "{line}: {text}");
    }
}
