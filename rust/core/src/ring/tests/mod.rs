//! The ring's tests that need a hand which writes anything into a guest's memory.

mod grants;
mod lifecycle;
mod notifications;
mod on_demand;
mod rules;
