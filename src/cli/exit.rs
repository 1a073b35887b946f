//! Exit codes: an interface of their own, listed in the README.

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Something unexpected; the text on stderr says what.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// Done, with warnings or findings on stdout.
    Warnings,
    /// The job that was watched failed or was cancelled.
    JobFailed,
    /// What was asked for is refused.
    Refused,
    /// The worker has ended as a controller wanted it, and is not to be started again by itself.
    Drained,
    /// The same, and not in order.
    DrainedInPart,
    /// What was asked for does not exist.
    NotFound,
    /// Interrupted by a signal.
    Interrupted,
}

impl Exit {
    /// All of them with what they mean, for the README's table.
    pub const ALL: &'static [(Exit, &'static str)] = &[
        (Exit::Done, "done"),
        (Exit::Failed, "something unexpected; stderr says what"),
        (Exit::Usage, "the command line or the configuration is wrong"),
        (Exit::Warnings, "done, with warnings or findings"),
        (Exit::JobFailed, "the job that was watched failed or was cancelled"),
        (
            Exit::Refused,
            "what was to be planned would be refused, as it is now; stderr says why, with the failure code",
        ),
        (Exit::Drained, "`worker`: ended by `host drain`; nothing starts it again but whoever wants it"),
        (Exit::DrainedInPart, "the same, and something did not end or could not be sent; stderr says what"),
        (Exit::NotFound, "what was asked for does not exist"),
        (Exit::Interrupted, "interrupted (SIGINT)"),
    ];

    /// The process's exit status.
    pub const fn status(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Warnings => 3,
            Exit::JobFailed => 4,
            Exit::Refused => 5,
            Exit::Drained => 6,
            Exit::DrainedInPart => 7,
            Exit::NotFound => 10,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.status().into()
    }
}
