//! The tree of steps as the line of operations in which it is carried out: a hold's release stands after what is inside.

use std::collections::BTreeSet;

use super::step::{Commit, Hold, Make, Named, Step};
use crate::failure::{Code, Failure};

/// One operation.
pub(super) enum Op<'a, C: Send> {
    Make(&'a dyn Make<C>),
    Acquire(&'a dyn Hold<C>),
    Release(&'a dyn Hold<C>),
    Commit(&'a dyn Commit<C>),
}

impl<C: Send> Clone for Op<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: Send> Copy for Op<'_, C> {}

impl<'a, C: Send> Op<'a, C> {
    pub(super) fn named(self) -> &'a dyn Named {
        match self {
            Op::Make(step) => step,
            Op::Acquire(step) | Op::Release(step) => step,
            Op::Commit(step) => step,
        }
    }
}

/// Lays the steps out. Refuses names that are used twice, a second commit, and a hold that is taken after the commit: nothing
/// could be said about what is inside when taking it fails.
pub(super) fn lay_out<C: Send>(steps: &[Step<C>]) -> Result<Vec<Op<'_, C>>, Failure> {
    let mut ops = Vec::new();
    push(steps, &mut ops);
    let mut names = BTreeSet::new();
    let mut committed = false;
    for op in &ops {
        let name = op.named().name();
        let wrong = match op {
            Op::Release(_) => None,
            _ if !names.insert(name) => Some("its name is used twice"),
            Op::Acquire(_) if committed => Some("a hold cannot be taken after the commit"),
            Op::Commit(_) if committed => Some("it is a second commit"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(Failure::new(Code::Internal, format!("step `{name}` does not fit into its saga: {wrong}")));
        }
        committed |= matches!(op, Op::Commit(_));
    }
    Ok(ops)
}

fn push<'a, C: Send>(steps: &'a [Step<C>], ops: &mut Vec<Op<'a, C>>) {
    for step in steps {
        match step {
            Step::Make(step) => ops.push(Op::Make(step.as_ref())),
            Step::Commit(step) => ops.push(Op::Commit(step.as_ref())),
            Step::Within(hold, inner) => {
                ops.push(Op::Acquire(hold.as_ref()));
                push(inner, ops);
                ops.push(Op::Release(hold.as_ref()));
            }
        }
    }
}
