use super::*;

#[test]
fn every_part_stands_in_the_table_once_and_in_order() {
    let parts: Vec<Part> = INVENTORY.iter().map(|entry| entry.part).collect();
    assert_eq!(parts, Part::ALL);
}

/// Which stage a line belongs to.
fn stage(how: How) -> u8 {
    match how {
        How::Host(_) => 0,
        How::Device(_) => 1,
        How::Chip(_) => 2,
        How::Vcpu(_) => 3,
        How::Memory => 4,
        How::Start(_) => 5,
    }
}

#[test]
fn the_stages_of_a_reset_follow_each_other() {
    let stages: Vec<u8> = INVENTORY.iter().map(|entry| stage(entry.how)).collect();
    assert!(stages.is_sorted(), "{stages:?}");
}

#[test]
fn each_line_has_a_name_of_its_own_and_a_reason() {
    for (at, entry) in INVENTORY.iter().enumerate() {
        let before = &INVENTORY[..at];
        assert!(
            before.iter().all(|other| other.name != entry.name),
            "{entry:?}"
        );
        assert!(
            entry.why.len() > 40 && entry.why.ends_with('.'),
            "{entry:?}"
        );
    }
}

#[test]
fn a_set_of_parts_lacks_exactly_what_was_taken_out() {
    for part in Part::ALL {
        let without = Parts::ALL.without(part);
        for other in Part::ALL {
            assert!(Parts::ALL.has(other));
            assert_eq!(without.has(other), other != part);
        }
    }
}
