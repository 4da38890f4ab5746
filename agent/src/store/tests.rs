//! What must survive a restart.

use snapback_vmm::snapshot::Digest;

use super::*;
use crate::exec::BuildFacts;
use crate::function::tests::config;
use crate::ids::new_snapshot_id;

fn function(name: &str) -> Function {
    let mut config = config(name);
    config
        .environment
        .insert("KEY".to_owned(), "värde".to_owned());
    Function {
        config,
        code: Digest::of(b"code"),
        snapshot: new_snapshot_id().unwrap(),
        build: BuildFacts {
            boot_ns: u64::MAX,
            ..BuildFacts::default()
        },
        created_unix_ms: 1,
    }
}

#[test]
fn functions_are_there_after_a_reopen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapback.db");
    let (b, a) = (function("b"), function("a"));
    {
        let store = Store::open(&path).unwrap();
        store.add_function(&b).unwrap();
        store.add_function(&a).unwrap();
        assert_eq!(store.next_epoch().unwrap(), 1);
    }
    let store = Store::open(&path).unwrap();
    assert_eq!(store.functions().unwrap(), [a.clone(), b]);
    assert_eq!(store.function(&a.config.name).unwrap(), Some(a.clone()));
    assert_eq!(store.next_epoch().unwrap(), 2);
    assert!(store.remove_function(&a.config.name).unwrap());
    assert!(!store.remove_function(&a.config.name).unwrap());
    assert_eq!(store.function(&a.config.name).unwrap(), None);
}

#[test]
fn a_snapshot_is_replaced_only_by_who_knows_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("db")).unwrap();
    let (f, g) = (function("f"), function("g"));
    store.add_function(&f).unwrap();
    store.add_function(&g).unwrap();
    let (name, next) = (&f.config.name, new_snapshot_id().unwrap());
    let replace = |old, new| store.replace_snapshot(name, old, new).unwrap();
    assert!(!replace(&g.snapshot, &next));
    assert_eq!(store.functions().unwrap(), [f.clone(), g.clone()]);
    assert!(replace(&f.snapshot, &next));
    assert!(!replace(&f.snapshot, &g.snapshot), "it has another one");
    let now = Function {
        snapshot: next.clone(),
        ..f.clone()
    };
    assert_eq!(store.functions().unwrap(), [now, g.clone()]);
    store.remove_function(name).unwrap();
    assert!(!replace(&next, &f.snapshot), "it is gone");
    assert_eq!(store.functions().unwrap(), [g]);
}

#[test]
fn a_name_is_given_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("db")).unwrap();
    store.add_function(&function("f")).unwrap();
    assert!(matches!(
        store.add_function(&function("f")),
        Err(StoreError::Exists(_))
    ));
}

#[test]
fn a_newer_database_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    drop(Store::open(&path).unwrap());
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(
        Store::open(&path),
        Err(StoreError::Newer { found: 99, .. })
    ));
}

#[test]
fn a_damaged_row_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let store = Store::open(&path).unwrap();
    store.add_function(&function("f")).unwrap();
    store
        .connection()
        .execute("UPDATE function SET config = '{}'", [])
        .unwrap();
    let error = store.functions().unwrap_err();
    assert!(matches!(&error, StoreError::Row { field: "config", function } if function == "f"));
}
