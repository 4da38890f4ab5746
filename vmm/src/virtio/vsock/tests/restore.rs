//! Snapshot, restore and reset: the channel stays, everything else goes.

use super::*;

#[test]
fn a_device_reset_keeps_the_waiting_host_end() {
    let mut guest = Guest::new();
    let _host = guest.attach();
    guest.driver.initialise(COMMON_FEATURES);
    assert!(guest.driver.transport.device().waiting.is_some());
    let (mut guest, mut host) = Guest::connected();
    guest.driver.write(0x70, 0);
    assert!(is_closed(&mut host), "an open connection ends");
}

#[test]
fn the_channel_survives_a_restore() {
    let (mut guest, mut old) = Guest::connected();
    guest.send(OP_RW, 0, b"ready");
    old.read_exact(&mut [0; 5]).unwrap();
    let state = guest.driver.transport.save();
    // Another process: the same memory, a new device.
    let mut restored = Driver::cold(Vsock::new(HostPoll::new().unwrap().device(0)));
    restored.ram = guest.driver.ram.clone();
    restored.transport.restore(&state, &restored.ram).unwrap();
    assert_eq!(restored.transport.save(), state);
    std::mem::swap(&mut restored.rings, &mut guest.driver.rings);
    let mut guest = Guest {
        driver: restored,
        ..guest
    };
    assert_eq!(guest.interest(), None, "no host end yet");
    // What the guest says before it has one is kept for it.
    guest.send(OP_RW, 0, b"early");
    let mut host = guest.attach();
    let _ = guest.host_ready();
    let mut got = [0; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
    host.write_all(b"request").unwrap();
    let _ = guest.host_ready();
    assert_eq!(guest.one_packet().1, b"request");
    assert_eq!(
        old.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

#[test]
fn a_reset_puts_the_same_device_back() {
    let (mut guest, mut old) = Guest::connected();
    let ram = guest.driver.ram.clone();
    let mut lost = guest.attach();
    crate::bus::testing::assert_restores(
        &mut guest,
        |guest| guest.driver.transport.save(),
        |guest| {
            lost.write_all(b"request").unwrap();
            let _ = guest.host_ready();
            guest.packets();
            guest.send(OP_RW, 0, b"response");
            guest.driver.transport.device_mut().detach_channel();
        },
        |guest, state| guest.driver.transport.restore(state, &ram).unwrap(),
    );
    assert!(is_closed(&mut old), "replaced");
    lost.read_exact(&mut [0; 8]).unwrap();
    assert!(is_closed(&mut lost), "detached");
}

#[test]
fn detaching_tells_the_guest_nothing_and_drops_what_waits() {
    let (mut guest, mut host) = Guest::connected();
    guest.driver.transport.device_mut().detach_channel();
    assert!(is_closed(&mut host));
    assert_eq!(guest.packets(), []);
    guest.send(OP_RW, 0, b"for the old one");
    assert!(!guest.driver.transport.is_quiet());
    guest.driver.transport.device_mut().detach_channel();
    assert!(guest.driver.transport.is_quiet());
    let mut host = guest.attach();
    guest.send(OP_RW, 0, b"new");
    let mut got = [0; 10];
    assert_eq!(host.read(&mut got).unwrap(), 3);
    assert_eq!(guest.save().connections[0].rx_cnt, 18);
}

#[test]
fn other_connections_are_reset_one_by_one() {
    let (guest, _host) = Guest::connected();
    let mut state = guest.driver.transport.save();
    let channel = state.device.connections[0];
    for port in 1..=3 {
        state.device.connections.push(ConnectionV1 {
            host_port: CHANNEL_PORT + port,
            ..channel
        });
    }
    let mut guest = guest;
    guest
        .driver
        .transport
        .restore(&state, &guest.driver.ram)
        .unwrap();
    assert_eq!(
        guest.driver.transport.save(),
        state,
        "a verified reset sees them"
    );
    assert!(!guest.driver.transport.is_quiet());
    let _host = guest.attach();
    let _ = guest.host_ready();
    let reset: Vec<(u16, u32)> = guest
        .packets()
        .iter()
        .map(|(header, _)| (header.op, header.src_port))
        .collect();
    assert_eq!(reset, [1, 2, 3].map(|port| (OP_RST, CHANNEL_PORT + port)));
    assert_eq!(guest.save().connections, [channel]);
}

#[test]
fn impossible_tables_are_refused() {
    let (guest, _host) = Guest::connected();
    let good = guest.driver.transport.save();
    let channel = good.device.connections[0];
    let refusal = |connections: Vec<ConnectionV1>| {
        let mut state = good.clone();
        state.device = VsockV1 { connections };
        let mut device = crate::virtio::transport::Transport::new(Vsock::new(
            HostPoll::new().unwrap().device(0),
        ));
        match device.restore(&state, &guest.driver.ram) {
            Err(VirtioRestoreError::Device(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let impossible = DeviceRestoreError::Connection {
        guest_port: channel.guest_port,
        host_port: channel.host_port,
    };
    assert_eq!(refusal(vec![channel, channel]), impossible, "twice");
    assert_eq!(
        refusal(vec![ConnectionV1 {
            guest_shutdown: 3,
            ..channel
        }]),
        impossible
    );
    assert_eq!(
        refusal(vec![ConnectionV1 {
            guest_shutdown: 4,
            ..channel
        }]),
        impossible
    );
    let told = channel.rx_cnt.wrapping_sub(BUF_ALLOC + 1);
    assert_eq!(
        refusal(vec![ConnectionV1 {
            told_fwd_cnt: told,
            ..channel
        }]),
        impossible
    );
    let second = ConnectionV1 {
        guest_port: channel.guest_port + 1,
        ..channel
    };
    assert!(matches!(
        refusal(vec![channel, second]),
        DeviceRestoreError::Connection { .. }
    ));
    let many = vec![channel; MAX_CONNECTIONS + 1];
    let connections = MAX_CONNECTIONS + 1;
    assert_eq!(
        refusal(many),
        DeviceRestoreError::TooManyConnections { connections }
    );
}
