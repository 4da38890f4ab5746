//! demo
pub mod answer;
pub mod documents;
pub mod function;
