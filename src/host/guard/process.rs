//! The worker's side of real guards: each a child process that outlives us.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::io::BufReader;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::protocol::{Answer, Order, read_line, write_line};
use super::{Guard, GuardDuty, Guards};
use crate::failure::{Code, Failure};
use crate::mover::protocol::OURSELVES;

/// Environment that a guard gets: what libvirt's client needs to find its sockets, and none of the worker's secrets.
const ENVIRONMENT: [&str; 3] = ["PATH", "HOME", "XDG_RUNTIME_DIR"];

/// Longest time to arm: an earlier guard of the instance has 45 s to be done, then libvirt is connected.
const ARM_LIMIT: Duration = Duration::from_secs(65);

/// Longest time for any other answer, and for the end after a disarm. The guest may be frozen meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// Longest time to answer whether it has fired. No guest waits for that, and a busy host is no reason to throw away the
/// work of hours.
const FIRED_LIMIT: Duration = Duration::from_secs(30);

/// Starts guard processes.
#[derive(Clone, Debug)]
pub struct ProcessGuards {
    program: PathBuf,
    libvirt_uri: String,
}

impl ProcessGuards {
    /// Guards that are copies of this program, which must be `longshore`, each with a connection of its own to the libvirt
    /// at `libvirt_uri`.
    pub fn new(libvirt_uri: &str) -> Self {
        Self::of_program(Path::new(OURSELVES), libvirt_uri)
    }

    /// Guards that run another `longshore` program than the one that asks.
    pub fn of_program(program: &Path, libvirt_uri: &str) -> Self {
        Self { program: program.to_owned(), libvirt_uri: libvirt_uri.to_owned() }
    }

    fn start(&self) -> std::io::Result<ProcessGuard> {
        let mut command = std::process::Command::new(&self.program);
        command.arg0("longshore").arg("guard").env_clear();
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        let mut child = Command::from(command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let missing = || std::io::Error::other("the guard has no pipe");
        let orders = child.stdin.take().ok_or_else(missing)?;
        let answers = child.stdout.take().ok_or_else(missing)?;
        let (asked, given) = mpsc::channel(1);
        tokio::spawn(talk(orders, answers, given));
        Ok(ProcessGuard { child, asked })
    }
}

#[async_trait]
impl Guards for ProcessGuards {
    async fn arm(&self, duty: &GuardDuty) -> Result<Box<dyn Guard>, Failure> {
        let failed = || Failure::new(Code::GuardFailed, format!("cannot arm a guard for instance `{}`", duty.instance));
        let mut guard = self.start().map_err(|error| failed().because(&error))?;
        let order = Order::Arm { libvirt_uri: self.libvirt_uri.clone(), duty: duty.clone() };
        match guard.ask(order, ARM_LIMIT).await {
            Ok(Answer { refused: None, .. }) => Ok(Box::new(guard)),
            // It ends by itself, since nothing is frozen and nothing begun; nothing waits for that but the place.
            Ok(Answer { refused: Some(refused), .. }) => Err(failed().because_of(&refused)),
            Err(failure) => {
                guard.kill().await;
                Err(failed().because_of(&failure))
            }
        }
    }
}

/// An order, how long its answer may take, and where the answer goes.
type Asked = (Order, Duration, oneshot::Sender<Result<Answer, Failure>>);

/// Exchanges orders and answers, each exchange to its end also when whoever asked has gone: else the next answer would be an
/// older one. After one that failed there is no other; the pipes stay open until the worker's end is dropped.
async fn talk(mut orders: ChildStdin, answers: ChildStdout, mut given: mpsc::Receiver<Asked>) {
    let mut answers = BufReader::new(answers);
    let mut out_of_step = false;
    while let Some((order, limit, answer)) = given.recv().await {
        let outcome = if out_of_step {
            Err(Failure::new(Code::GuardFailed, "the guard did not answer an earlier order"))
        } else {
            exchange(&mut orders, &mut answers, &order, limit).await
        };
        out_of_step = outcome.is_err();
        // Nobody listens any more where a step was cancelled.
        let _ = answer.send(outcome);
    }
}

async fn exchange(
    orders: &mut ChildStdin,
    answers: &mut BufReader<ChildStdout>,
    order: &Order,
    limit: Duration,
) -> Result<Answer, Failure> {
    let exchange = async {
        write_line(orders, order).await?;
        read_line::<Answer>(answers).await
    };
    match timeout(limit, exchange).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(Failure::new(Code::GuardFailed, "the guard process ended")),
        Ok(Err(error)) => Err(Failure::new(Code::GuardFailed, "cannot talk to the guard process").because(&error)),
        Err(_) => Err(Failure::new(Code::GuardFailed, format!("the guard did not answer within {limit:?}"))),
    }
}

struct ProcessGuard {
    child: Child,
    asked: mpsc::Sender<Asked>,
}

impl ProcessGuard {
    async fn ask(&mut self, order: Order, limit: Duration) -> Result<Answer, Failure> {
        let gone = || Failure::new(Code::GuardFailed, "nobody talks to the guard process any more");
        let (answer, answered) = oneshot::channel();
        self.asked.send((order, limit, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    async fn order(&mut self, order: Order) -> Result<Option<Failure>, Failure> {
        self.order_within(order, ANSWER_LIMIT).await
    }

    async fn order_within(&mut self, order: Order, limit: Duration) -> Result<Option<Failure>, Failure> {
        let answer = self.ask(order, limit).await?;
        answer.refused.map_or(Ok(answer.fired), Err)
    }

    async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, pid = self.child.id(), "cannot kill a guard process");
        }
    }
}

#[async_trait]
impl Guard for ProcessGuard {
    async fn beginning(&mut self) -> Result<(), Failure> {
        self.order(Order::Beginning).await?.map_or(Ok(()), Err)
    }

    async fn freezing(&mut self) -> Result<(), Failure> {
        self.order(Order::Freezing).await?.map_or(Ok(()), Err)
    }

    async fn thawed(&mut self) -> Result<(), Failure> {
        self.order(Order::Thawed).await?.map_or(Ok(()), Err)
    }

    async fn fired(&mut self) -> Result<Option<Failure>, Failure> {
        self.order_within(Order::Fired, FIRED_LIMIT).await
    }

    async fn disarm(mut self: Box<Self>) -> Result<(), Failure> {
        let asked = self.order(Order::Disarm).await;
        let failed = || Failure::new(Code::GuardFailed, "a guard process had to be killed");
        match (asked, timeout(ANSWER_LIMIT, self.child.wait()).await) {
            (Ok(_), Ok(Ok(_))) => Ok(()),
            (Err(failure), _) => {
                self.kill().await;
                Err(failed().because_of(&failure))
            }
            (Ok(_), Ok(Err(error))) => Err(failed().because(&error)),
            (Ok(_), Err(_)) => {
                self.kill().await;
                Err(failed().caused_by(format!("it did not end within {ANSWER_LIMIT:?}")))
            }
        }
    }

    fn leave(mut self: Box<Self>, late: BoxFuture<'static, ()>) -> u32 {
        // An id that is gone already means a guard that is done.
        let process = self.child.id().unwrap_or(0);
        tokio::spawn(async move {
            // One that can't be told is set to work by the end of its pipe, too early for what is late but not for the rest.
            if let Err(failure) = self.order(Order::Rescue).await {
                tracing::warn!("{failure:#}");
                return;
            }
            late.await;
        });
        process
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::model::id::InstanceId;

    /// A guard that answers its second order as late as this.
    const LATE_SECONDS: u64 = ANSWER_LIMIT.as_secs() + 1;

    #[tokio::test]
    async fn a_guard_that_is_slow_to_say_whether_it_has_fired_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("guard");
        let answer = r#"printf '{"refused":null,"fired":null}\n'"#;
        let script = format!(
            "#!/bin/sh\nread order\n{answer}\nread order\nsleep {LATE_SECONDS}\n{answer}\nread order\n{answer}\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let duty = GuardDuty { instance: InstanceId::draw(), freeze_limit: ANSWER_LIMIT, job: None };
        let mut guard = ProcessGuards::of_program(&program, "test:///default").arm(&duty).await.unwrap();
        assert_eq!(guard.fired().await.unwrap(), None);
        guard.disarm().await.unwrap();
    }
}
