//! Filters of system calls. Three are in force at a time: one hands the calls for sockets to the agent, one makes
//! the C library start threads in a way whose arguments can be looked at, and one denies all that is not listed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc as sys;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls that need no look at their arguments.
const ALWAYS: &[i64] = &[
    // Memory.
    sys::SYS_brk,
    sys::SYS_madvise,
    sys::SYS_membarrier,
    sys::SYS_memfd_create,
    sys::SYS_mmap,
    sys::SYS_mprotect,
    sys::SYS_mremap,
    sys::SYS_msync,
    sys::SYS_munmap,
    // Threads, signals, time.
    sys::SYS_clock_getres,
    sys::SYS_clock_gettime,
    sys::SYS_clock_nanosleep,
    sys::SYS_exit,
    sys::SYS_exit_group,
    sys::SYS_futex,
    sys::SYS_getpid,
    sys::SYS_getrandom,
    sys::SYS_getrusage,
    sys::SYS_gettid,
    sys::SYS_gettimeofday,
    sys::SYS_nanosleep,
    sys::SYS_restart_syscall,
    sys::SYS_rseq,
    sys::SYS_rt_sigaction,
    sys::SYS_rt_sigprocmask,
    sys::SYS_rt_sigreturn,
    sys::SYS_sched_getaffinity,
    sys::SYS_sched_yield,
    sys::SYS_set_robust_list,
    sys::SYS_set_tid_address,
    sys::SYS_sigaltstack,
    sys::SYS_sysinfo,
    sys::SYS_uname,
    // Descriptors that are there already.
    sys::SYS_close,
    sys::SYS_dup,
    sys::SYS_dup3,
    sys::SYS_epoll_create1,
    sys::SYS_epoll_ctl,
    sys::SYS_epoll_pwait,
    sys::SYS_epoll_pwait2,
    sys::SYS_eventfd2,
    sys::SYS_fcntl,
    sys::SYS_fstat,
    sys::SYS_lseek,
    sys::SYS_ppoll,
    sys::SYS_pread64,
    sys::SYS_preadv,
    sys::SYS_preadv2,
    sys::SYS_pwrite64,
    sys::SYS_pwritev,
    sys::SYS_pwritev2,
    sys::SYS_read,
    sys::SYS_readv,
    sys::SYS_write,
    sys::SYS_writev,
    // Sockets that are there already.
    sys::SYS_getpeername,
    sys::SYS_getsockname,
    sys::SYS_getsockopt,
    sys::SYS_recvfrom,
    sys::SYS_recvmsg,
    sys::SYS_shutdown,
];

/// The same under the names that older processors have for them.
#[cfg(target_arch = "x86_64")]
const ALWAYS_HERE: &[i64] = &[sys::SYS_epoll_wait, sys::SYS_poll, sys::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALWAYS_HERE: &[i64] = &[];

/// Calls for files, which Landlock decides about.
const FILES: &[i64] = &[
    sys::SYS_copy_file_range,
    sys::SYS_faccessat,
    sys::SYS_faccessat2,
    sys::SYS_fadvise64,
    sys::SYS_fallocate,
    sys::SYS_fdatasync,
    sys::SYS_fstatfs,
    sys::SYS_fsync,
    sys::SYS_ftruncate,
    sys::SYS_getdents64,
    sys::SYS_linkat,
    sys::SYS_mkdirat,
    sys::SYS_newfstatat,
    sys::SYS_openat,
    sys::SYS_openat2,
    sys::SYS_readlinkat,
    sys::SYS_renameat,
    sys::SYS_renameat2,
    sys::SYS_statx,
    sys::SYS_symlinkat,
    sys::SYS_sync_file_range,
    sys::SYS_unlinkat,
    sys::SYS_utimensat,
];
#[cfg(target_arch = "x86_64")]
const FILES_HERE: &[i64] = &[sys::SYS_lstat, sys::SYS_open, sys::SYS_readlink, sys::SYS_stat];
#[cfg(not(target_arch = "x86_64"))]
const FILES_HERE: &[i64] = &[];

/// Calls for sockets, which the agent answers.
pub(crate) const SOCKETS: &[i64] =
    &[sys::SYS_socket, sys::SYS_bind, sys::SYS_connect, sys::SYS_listen, sys::SYS_accept, sys::SYS_accept4];

/// What may be asked of a device: whether it is a terminal, how much there is to read, not to wait, and which pages
/// of the process's own memory are in use.
const DEVICE: &[u64] = &[0x5401, 0x541b, 0x5421, 0xc060_6610];
/// A thread's name and a mapping's name.
const PROCESS: &[u64] = &[15, 16, 0x5356_4d41];
/// Levels of a socket's options: of all sockets, of IP, of TCP, of UDP and of IPv6.
const OPTIONS: &[u64] = &[1, 0, 6, 17, 41];

/// Has whoever holds the answer make this process's sockets; `None` when the kernel knows no such thing, or has
/// somebody do that already.
pub(crate) fn hand_over_sockets() -> io::Result<Option<OwnedFd>> {
    // Denied so that the C library uses the older call; it does not try with another error.
    let threads = Rules::from([(sys::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(sys::ENOSYS.cast_unsigned());
    apply(&program(threads, missing, SeccompAction::Allow)?)?;

    let mut rules: Rules = SOCKETS.iter().map(|call| (*call, Vec::new())).collect();
    // To an address; without one it goes where the socket is connected to.
    rules.insert(sys::SYS_sendto, vec![rule(vec![condition(4, Len::Qword, Op::Ne, 0)?])?]);
    const MARK: u32 = 0x7777;
    let mut program = program(rules, SeccompAction::Trace(MARK), SeccompAction::Allow)?;
    // The library knows no notifications; they take the place of tracing.
    for step in program.iter_mut().filter(|step| step.k == sys::SECCOMP_RET_TRACE | MARK) {
        step.k = sys::SECCOMP_RET_USER_NOTIF;
    }
    match apply_with_listener(&program) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if matches!(error.raw_os_error(), Some(sys::EINVAL | sys::EBUSY)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Denies every call that is not listed.
pub(super) fn allow_few(sockets: bool, files: bool) -> io::Result<()> {
    let mut rules = Rules::new();
    let mut free = |calls: &[i64]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    free(ALWAYS);
    free(ALWAYS_HERE);
    if files {
        free(FILES);
        free(FILES_HERE);
    }
    if sockets {
        free(SOCKETS);
        free(&[sys::SYS_sendto]);
    } else {
        rules.insert(sys::SYS_sendto, vec![rule(vec![condition(4, Len::Qword, Op::Eq, 0)?])?]);
    }
    // Reaches the first filter, which says that there is no such call.
    rules.insert(sys::SYS_clone3, Vec::new());
    let thread = sys::CLONE_THREAD.cast_unsigned().into();
    rules.insert(sys::SYS_clone, vec![rule(vec![condition(0, Len::Qword, Op::MaskedEq(thread), thread)?])?]);
    let own = u64::from(std::process::id());
    rules.insert(sys::SYS_tgkill, vec![rule(vec![condition(0, Len::Dword, Op::Eq, own)?])?]);
    // Limits may be looked at.
    rules.insert(sys::SYS_prlimit64, vec![rule(vec![condition(2, Len::Qword, Op::Eq, 0)?])?]);
    let unix = sys::AF_UNIX.cast_unsigned().into();
    rules.insert(sys::SYS_socketpair, vec![rule(vec![condition(0, Len::Dword, Op::Eq, unix)?])?]);
    rules.insert(sys::SYS_ioctl, one_of(1, DEVICE)?);
    rules.insert(sys::SYS_prctl, one_of(0, PROCESS)?);
    rules.insert(sys::SYS_setsockopt, one_of(1, OPTIONS)?);
    let denied = SeccompAction::Errno(sys::EPERM.cast_unsigned());
    apply(&program(rules, SeccompAction::Allow, denied)?)
}

fn one_of(argument: u8, values: &[u64]) -> io::Result<Vec<SeccompRule>> {
    values.iter().map(|value| rule(vec![condition(argument, Len::Dword, Op::Eq, *value)?])).collect()
}

fn condition(argument: u8, length: Len, operation: Op, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, length, operation, value).map_err(io::Error::other)
}

fn rule(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

fn program(rules: Rules, then: SeccompAction, otherwise: SeccompAction) -> io::Result<BpfProgram> {
    let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, then, machine).map_err(io::Error::other)?;
    filter.try_into().map_err(|error: seccompiler::BackendError| io::Error::other(error))
}

fn apply(program: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(|error| io::Error::other(format!("seccomp: {error}")))
}

#[allow(unsafe_code)]
fn apply_with_listener(program: &BpfProgram) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Program {
        length: u16,
        steps: *const seccompiler::sock_filter,
    }
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let given = Program { length, steps: program.as_ptr() };
    let flags = sys::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the kernel copies the program, which lives until it returns, and keeps no pointer to it.
    let listener =
        unsafe { sys::syscall(sys::SYS_seccomp, sys::SECCOMP_SET_MODE_FILTER, flags, &raw const given) };
    match i32::try_from(listener) {
        // SAFETY: the kernel has just made the descriptor for this process, and nobody else knows it.
        Ok(listener) if listener >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(listener) }),
        _ => Err(io::Error::last_os_error()),
    }
}
