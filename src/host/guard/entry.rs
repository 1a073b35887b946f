//! The guard process: `longshore guard`, started by a worker with pipes on stdin and stdout.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{BufReader, Stdin};
use tokio::sync::{mpsc, oneshot};

use super::protocol::{Answer, Order, read_line, write_line};
use super::watch::{Asked, watch};
use super::words::{self, Words, say};
use super::{GuardDuty, place};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Hypervisor;
use crate::host::hypervisor::libvirt::Libvirt;

/// How long an earlier guard of the same instance may take to be done: longer than it settles.
pub(super) const PLACE_WAIT: Duration = Duration::from_secs(45);

/// How long the answer to the last order may take to be written.
const LAST_ANSWER_WAIT: Duration = Duration::from_secs(1);

/// What the kernel's OOM killer reads as "never" (`proc_pid_oom_score_adj(5)`).
const OOM_NEVER: &str = "-1000";

/// Runs the guard process until it is disarmed or done. Exit code 0 when nothing is left, 1 when it was never armed; that is
/// also told on stderr.
pub fn main() -> ExitCode {
    // One that runs already would do as well.
    let _ = tracing_subscriber::fmt().with_writer(|| Words).with_ansi(false).with_target(false).try_init();
    leave_the_workers_reach();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("cannot start the guard's runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(guard());
    // A read of stdin or a libvirt call may still be under way; neither keeps the process.
    runtime.shutdown_background();
    let code = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("{failure:#}"));
            ExitCode::FAILURE
        }
    };
    words::finish();
    code
}

/// A session of its own, so that no signal to the worker's group or terminal arrives here; no hold on the worker's
/// directory; and not the one that dies when memory is short, which is when a worker may be killed in mid freeze.
fn leave_the_workers_reach() {
    if let Err(error) = nix::unistd::setsid() {
        say(&format!("the guard stays in its starter's session: {error}"));
    }
    if let Err(error) = std::env::set_current_dir("/") {
        say(&format!("the guard stays in its starter's directory: {error}"));
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_NEVER) {
        say(&format!("the guard is not exempt from the OOM killer: {error}"));
    }
}

async fn guard() -> Result<(), Failure> {
    let mut orders = BufReader::new(tokio::io::stdin());
    let unreadable =
        |error: &std::io::Error| Failure::new(Code::GuardFailed, "cannot read the guard's orders").because(error);
    let Some(order) = read_line::<Order>(&mut orders).await.map_err(|error| unreadable(&error))? else { return Ok(()) };
    let Order::Arm { libvirt_uri, duty } = order else {
        return Err(Failure::new(Code::GuardFailed, "the guard's first order was not to arm"));
    };
    let armed = arm(&libvirt_uri, &duty).await;
    let refused = armed.as_ref().err().cloned();
    // A worker that died meanwhile is noticed by the end of its orders, right below.
    let _ = write_line(&mut tokio::io::stdout(), &Answer { refused, fired: None }).await;
    let (hypervisor, _place) = armed?;

    let (asked, given) = mpsc::channel(1);
    let last_answer = tokio::spawn(pass_on(orders, asked));
    watch(hypervisor, duty, given).await;
    // The answer to a disarm is still on its way; a worker that doesn't read it is not waited for.
    let _ = tokio::time::timeout(LAST_ANSWER_WAIT, last_answer).await;
    Ok(())
}

async fn arm(libvirt_uri: &str, duty: &GuardDuty) -> Result<(Arc<dyn Hypervisor>, place::Place), Failure> {
    let place = place::take(duty.instance, PLACE_WAIT).await?;
    let hypervisor: Arc<dyn Hypervisor> = Arc::new(Libvirt::new(libvirt_uri));
    // Opens the connection on which thaw and abort will go: a guard that cannot reach libvirt is none.
    hypervisor.domain_job(duty.instance).await?;
    Ok((hypervisor, place))
}

/// Passes orders on until the last one, or until the pipe ends or makes no sense, which counts as its end.
async fn pass_on(mut orders: BufReader<Stdin>, asked: mpsc::Sender<Asked>) {
    let mut answers = tokio::io::stdout();
    loop {
        let order = match read_line::<Order>(&mut orders).await {
            Ok(Some(order)) => order,
            Ok(None) => return,
            Err(error) => return say(&format!("the guard's orders end: {error}")),
        };
        let is_last = order == Order::Disarm;
        let (answer, answered) = oneshot::channel();
        if asked.send((order, answer)).await.is_err() {
            return;
        }
        let Ok(answer) = answered.await else { return };
        // Nobody reads the answers of a worker that died; the end of its orders follows.
        let _ = write_line(&mut answers, &answer).await;
        if is_last {
            return;
        }
    }
}
