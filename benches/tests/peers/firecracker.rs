//! Requests and bodies: Firecracker's `src/firecracker/swagger/firecracker.yaml`.

use std::time::Duration;

use serde_json::json;
use snapback_bench::peers::{Firecracker, Start, Vmm, measure};

use crate::stand_in::{Exception, PATIENCE, StandIn, chain, soon, with};

const VERSION: &str = "Firecracker v1.13.1";
const STAYS: &str = "exec sleep 100";
/// What lets its guest run.
const STARTING: &[&str] = &["/actions", "/snapshot/load"];

fn serve<T>(
    stand_in: &StandIn,
    exceptions: &'static [Exception],
    drive: impl FnOnce(&Firecracker) -> T,
) -> T {
    let firecracker = Firecracker::new(stand_in.program()).within(PATIENCE);
    stand_in.serve(
        "firecracker-api",
        "firecracker-vsock",
        STARTING,
        exceptions,
        || drive(&firecracker),
    )
}

#[test]
fn a_guest_is_booted_saved_and_restored_by_documented_requests() {
    let stand_in = StandIn::new(VERSION, STAYS);
    let guest = stand_in.guest();
    serve(&stand_in, &[], |firecracker| {
        firecracker.save(&guest).unwrap();
        let drive = |id: &str, path| {
            json!({
                "drive_id": id, "path_on_host": path,
                "is_root_device": false, "is_read_only": true,
            })
        };
        let mut asked = stand_in.take_asked();
        // The words of the command line are this project's, not the interface's.
        let arguments = asked[1].2.as_mut().unwrap()["boot_args"].take();
        assert!(arguments.as_str().unwrap().contains("console=ttyS0"));
        let state = stand_in.at("firecracker-state");
        let memory = stand_in.at("firecracker-memory");
        assert_eq!(
            asked,
            [
                with(
                    "PUT",
                    "/machine-config",
                    json!({"vcpu_count": 1, "mem_size_mib": 128})
                ),
                with(
                    "PUT",
                    "/boot-source",
                    json!({
                        "kernel_image_path": guest.kernel,
                        "initrd_path": guest.initramfs,
                        "boot_args": null,
                    })
                ),
                with("PUT", "/drives/root", drive("root", &guest.root)),
                with("PUT", "/drives/code", drive("code", &guest.code)),
                with(
                    "PUT",
                    "/vsock",
                    json!({
                        "guest_cid": 42, "uds_path": stand_in.at("firecracker-vsock"),
                    })
                ),
                with("PUT", "/actions", json!({"action_type": "InstanceStart"})),
                with("PATCH", "/vm", json!({"state": "Paused"})),
                with(
                    "PUT",
                    "/snapshot/create",
                    json!({
                        "snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory,
                    })
                ),
            ]
        );
        for start in [Start::Waiting, Start::None] {
            let times = firecracker.restore(&guest, start).unwrap();
            assert!(0.0 < times.ready && times.ready < times.done, "{times:?}");
            assert_eq!(
                stand_in.take_asked(),
                [with(
                    "PUT",
                    "/snapshot/load",
                    json!({
                        "snapshot_path": state,
                        "mem_backend": {"backend_type": "File", "backend_path": memory},
                        "resume_vm": true,
                    })
                )]
            );
        }
    });
    let socket = stand_in.at("firecracker-api");
    for (_, arguments) in stand_in.starts() {
        assert_eq!(arguments, format!("--api-sock {}", socket.display()));
    }
    assert_eq!(stand_in.starts().len(), 3, "each restore in a new process");
    stand_in.check_that_all_ended();
}

#[test]
fn the_rows_are_those_of_every_peer() {
    let stand_in = StandIn::new(VERSION, STAYS);
    let peer = serve(&stand_in, &[], |firecracker| {
        measure(firecracker, &stand_in.guest(), 2).unwrap()
    });
    assert_eq!(peer.peer, "firecracker 1.13.1");
    let rows: Vec<_> = peer
        .rows
        .iter()
        .map(|row| {
            (
                row.name.as_str(),
                row.params["process"].as_str().unwrap(),
                row.n,
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("restore/b", "waiting", 2),
            ("restore/c", "waiting", 2),
            ("restore/b", "none", 2),
            ("restore/c", "none", 2),
        ]
    );
    assert_eq!(stand_in.starts().len(), 5);
    stand_in.check_that_all_ended();
}

#[test]
fn a_refusal_is_shown_in_its_own_words_and_ends_the_process() {
    let stand_in = StandIn::new(VERSION, STAYS);
    let refusals: &'static [Exception] = &[(
        "/snapshot/load",
        Some((
            400,
            r#"{"fault_message": "Load snapshot error: no such file"}"#,
        )),
    )];
    let said = serve(&stand_in, refusals, |firecracker| {
        chain(firecracker.restore(&stand_in.guest(), Start::Waiting))
    });
    for words in [
        "firecracker: PUT /snapshot/load",
        "400",
        "Load snapshot error: no such file",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(stand_in.take_asked().len(), 1);
    stand_in.check_that_all_ended();
}

#[test]
fn silence_of_the_program_and_of_its_guest_has_an_end() {
    let limit = Duration::from_millis(300);
    let silent: &'static [Exception] = &[("/machine-config", None)];
    let stand_in = StandIn::new(VERSION, STAYS);
    let said = soon(|| {
        serve(&stand_in, silent, |firecracker| {
            let firecracker = firecracker.clone().within(limit);
            chain(firecracker.save(&stand_in.guest()))
        })
    });
    assert!(said.contains("PUT /machine-config"), "{said}");
    assert!(said.contains("not answered within 300ms"), "{said}");
    stand_in.check_that_all_ended();

    // Nobody listens at all.
    let stand_in = StandIn::new(VERSION, STAYS);
    let firecracker = Firecracker::new(stand_in.program()).within(limit);
    let said = soon(|| chain(firecracker.save(&stand_in.guest())));
    assert!(said.contains("cannot reach"), "{said}");
    assert!(said.contains("firecracker-api within 300ms"), "{said}");
    stand_in.check_that_all_ended();

    // It does all it is asked, and its guest says nothing.
    let stand_in = StandIn::new(VERSION, STAYS);
    let firecracker = Firecracker::new(stand_in.program()).within(limit);
    let said = soon(|| {
        stand_in.serve("firecracker-api", "firecracker-vsock", &[], &[], || {
            chain(firecracker.restore(&stand_in.guest(), Start::None))
        })
    });
    assert!(
        said.contains("firecracker: the guest does not answer"),
        "{said}"
    );
    stand_in.check_that_all_ended();
}

#[test]
fn a_program_that_ends_is_not_waited_for_and_what_it_said_is_shown() {
    let stand_in = StandIn::new(VERSION, "echo 'KVM is not there' >&2; exit 3");
    let firecracker = Firecracker::new(stand_in.program()).within(PATIENCE);
    let said = soon(|| chain(firecracker.save(&stand_in.guest())));
    assert!(
        said.contains("its process ended (exit status: 3)"),
        "{said}"
    );
    assert!(said.contains("KVM is not there"), "{said}");
}

#[test]
fn a_program_that_cannot_be_run_is_named() {
    let stand_in = StandIn::new(VERSION, STAYS);
    let missing = stand_in.at("nobody");
    let said = chain(measure(
        &Firecracker::new(missing.clone()),
        &stand_in.guest(),
        1,
    ));
    assert!(
        said.contains(&format!("cannot run {}", missing.display())),
        "{said}"
    );
    assert!(said.contains("No such file"), "{said}");
    std::fs::write(&missing, "no program").unwrap();
    let said = chain(measure(&Firecracker::new(missing), &stand_in.guest(), 1));
    assert!(said.contains("Permission denied"), "{said}");
    assert!(stand_in.starts().is_empty());
}
