//! Requests and bodies: Cloud Hypervisor's `vmm/src/api/openapi/cloud-hypervisor.yaml`.

use serde_json::{Value, json};
use snapback_bench::peers::{CloudHypervisor, Start, Vmm, measure};

use crate::stand_in::{Exception, PATIENCE, StandIn, bare, chain, with};

const STAYS: &str = "exec sleep 100";
/// What lets its guest run.
const STARTING: &[&str] = &["/api/v1/vm.boot", "/api/v1/vm.resume"];

fn serve<T>(
    stand_in: &StandIn,
    exceptions: &'static [Exception],
    drive: impl FnOnce(&CloudHypervisor) -> T,
) -> T {
    let vmm = CloudHypervisor::new(stand_in.program(), stand_in.at("vmlinux-pci"));
    let vmm = vmm.within(PATIENCE);
    let (api, vsock) = ("cloud-hypervisor-api", "cloud-hypervisor-vsock");
    stand_in.serve(api, vsock, STARTING, exceptions, || drive(&vmm))
}

#[test]
fn a_guest_is_booted_saved_and_restored_by_documented_requests() {
    let stand_in = StandIn::new("cloud-hypervisor v52.0.0", STAYS);
    let guest = stand_in.guest();
    let url = format!(
        "file://{}",
        stand_in.at("cloud-hypervisor-snapshot").display()
    );
    serve(&stand_in, &[], |vmm| {
        vmm.save(&guest).unwrap();
        let mut asked = stand_in.take_asked();
        let arguments = asked[0].2.as_mut().unwrap()["payload"]["cmdline"].take();
        assert!(
            !arguments.as_str().unwrap().contains("pci=off"),
            "{arguments}"
        );
        assert_eq!(
            asked,
            [
                with(
                    "PUT",
                    "/api/v1/vm.create",
                    json!({
                        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
                        "memory": {"size": 128 << 20},
                        "payload": {
                            "kernel": stand_in.at("vmlinux-pci"),
                            "initramfs": guest.initramfs,
                            "cmdline": null,
                        },
                        "disks": [
                            {"path": guest.root, "readonly": true},
                            {"path": guest.code, "readonly": true},
                        ],
                        "vsock": {"cid": 42, "socket": stand_in.at("cloud-hypervisor-vsock")},
                        "serial": {"mode": "Null"},
                        "console": {"mode": "Off"},
                    })
                ),
                bare("PUT", "/api/v1/vm.boot"),
                bare("PUT", "/api/v1/vm.pause"),
                with(
                    "PUT",
                    "/api/v1/vm.snapshot",
                    json!({"destination_url": url})
                ),
            ]
        );
        assert!(stand_in.at("cloud-hypervisor-snapshot").is_dir());
        for start in [Start::Waiting, Start::None] {
            let times = vmm.restore(&guest, start).unwrap();
            assert!(0.0 < times.ready && times.ready < times.done, "{times:?}");
            assert_eq!(
                stand_in.take_asked(),
                [
                    with(
                        "PUT",
                        "/api/v1/vm.restore",
                        json!({
                            "source_url": url, "memory_restore_mode": "OnDemand",
                        })
                    ),
                    bare("PUT", "/api/v1/vm.resume"),
                ]
            );
        }
    });
    let socket = stand_in.at("cloud-hypervisor-api");
    for (_, arguments) in stand_in.starts() {
        assert_eq!(arguments, format!("--api-socket path={}", socket.display()));
    }
    assert_eq!(stand_in.starts().len(), 3, "each restore in a new process");
    stand_in.check_that_all_ended();
}

#[test]
fn a_version_without_paging_copies_and_its_rows_say_so() {
    for (version, name, memory, mode) in [
        (
            "cloud-hypervisor v51.1.0",
            "cloud-hypervisor 51.1.0",
            "copied",
            None,
        ),
        (
            "cloud-hypervisor v52.0",
            "cloud-hypervisor 52.0",
            "on_demand",
            Some("OnDemand"),
        ),
    ] {
        let stand_in = StandIn::new(version, STAYS);
        let peer = serve(&stand_in, &[], |vmm| {
            measure(vmm, &stand_in.guest(), 1).unwrap()
        });
        assert_eq!(peer.peer, name);
        assert_eq!(peer.rows.len(), 4);
        for row in &peer.rows {
            assert_eq!(row.params["memory"], memory, "{row:?}");
        }
        let asked = stand_in.take_asked();
        let restores = asked
            .iter()
            .filter(|(_, path, _)| path == "/api/v1/vm.restore");
        let modes: Vec<_> = restores
            .map(|(_, _, body)| body.as_ref().unwrap().get("memory_restore_mode").cloned())
            .collect();
        assert_eq!(
            modes,
            [mode.map(Value::from), mode.map(Value::from)],
            "{version}"
        );
        stand_in.check_that_all_ended();
    }
}

#[test]
fn a_refusal_is_shown_in_its_own_words_and_ends_the_process() {
    let stand_in = StandIn::new("cloud-hypervisor v52.0.0", STAYS);
    let refusals: &'static [Exception] = &[(
        "/api/v1/vm.boot",
        Some((500, r#"["Error from API","The VM could not boot"]"#)),
    )];
    let said = serve(&stand_in, refusals, |vmm| {
        chain(vmm.save(&stand_in.guest()))
    });
    for words in [
        "cloud-hypervisor: PUT /api/v1/vm.boot",
        "500",
        "The VM could not boot",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(stand_in.take_asked().len(), 2);
    stand_in.check_that_all_ended();
}
