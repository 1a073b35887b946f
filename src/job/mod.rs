//! The work: facts, plan, steps of each job kind.
