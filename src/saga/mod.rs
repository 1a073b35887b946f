//! Steps with their way back, and the engine that runs, journals and unwinds them. Knows nothing of instances,
//! shares or messages.

pub mod step;
