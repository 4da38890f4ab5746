//! Tests of transition tables.

use std::fmt::Debug;

/// Compares a state machine with its table, written out a second time on purpose:
/// one row per state, one column per event; `-` is a refusal.
pub fn assert_table<S: Copy + Debug, E: Copy + Debug, Effect: Debug>(
    table: &str,
    states: &[S],
    events: &[E],
    on: impl Fn(S, E) -> Option<(S, Effect)>,
) {
    let rows: Vec<_> = table
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(rows.len(), states.len());
    for (state, row) in states.iter().zip(rows) {
        let mut cells = row.split_whitespace();
        assert_eq!(cells.next(), Some(format!("{state:?}").as_str()));
        for event in events {
            let got = match on(*state, *event) {
                Some((next, effect)) => format!("{next:?}/{effect:?}"),
                None => "-".to_owned(),
            };
            assert_eq!(cells.next(), Some(got.as_str()), "{state:?} on {event:?}");
        }
        assert_eq!(cells.next(), None);
    }
}
