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
    let poll = HostPoll::new().unwrap();
    let mut restored = Driver::cold(Vsock::new(poll.device(0)));
    restored.ram = guest.driver.ram.clone();
    restored.transport.restore(&state, &restored.ram).unwrap();
    assert_eq!(restored.transport.save(), state);
    std::mem::swap(&mut restored.rings, &mut guest.driver.rings);
    let mut guest = Guest {
        driver: restored,
        poll,
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
        },
        |guest, state| guest.driver.transport.restore(state, &ram).unwrap(),
    );
    assert!(is_closed(&mut old), "replaced");
    lost.read_exact(&mut [0; 8]).unwrap();
    assert!(is_closed(&mut lost), "dropped");
}

#[test]
fn what_a_lease_brought_is_gone_after_a_reset() {
    let (mut guest, mut host) = Guest::connected();
    let state = guest.save();
    let mut agent = guest.attach_hub();
    // One connection of each kind, and a host end for a channel to come.
    guest.say(9, 80, OP_REQUEST, 0, &[]);
    let mut stream = agent.accepts();
    guest.settle();
    guest.say(10, 80, OP_REQUEST, 0, &[]);
    let (_, mut call) = agent.calls(7);
    guest.settle();
    assert!(matches!(agent.hears(), Some(HubRequest::Connect { .. })));
    // Not heard yet when the lease ends.
    agent.says(HubCommand::Refuse { id: 77 }, None);
    assert_eq!(guest.driver.transport.device().table.len(), 4);
    guest.packets();
    guest.put_back(&state);
    for host in [&mut host, &mut stream, &mut call] {
        assert!(is_closed(host));
    }
    assert!(agent.is_alone());
    assert_eq!(guest.poll.ready().unwrap(), []);
    // The next lease's hub knows nothing of it, and the ports begin anew.
    let mut agent = guest.attach_hub();
    let _host = guest.attach();
    guest.settle();
    assert_eq!(agent.hears(), None);
    assert_eq!(guest.packets(), []);
    agent.calls(7);
    guest.settle();
    assert_eq!(guest.one_packet().0.src_port, hosts::FIRST_CALL_PORT);
}

#[test]
fn other_connections_are_reset_one_by_one() {
    let (mut guest, _host) = Guest::connected();
    let mut agent = guest.attach_hub();
    let mut ends = Vec::new();
    for port in 1..=3 {
        guest.say(port, 80, OP_REQUEST, 0, &[]);
        ends.push(agent.accepts());
        guest.settle();
    }
    // Asked for, called, and refused without the guest having heard of it.
    guest.say(4, 80, OP_REQUEST, 0, &[]);
    ends.push(agent.calls(5).1);
    guest.settle();
    guest.packets();
    let state = guest.save();
    assert!(state.channel.is_some() && guest.driver.transport.is_quiet());
    let call = PortsV1 {
        host_port: hosts::FIRST_CALL_PORT,
        guest_port: 5,
    };
    let others = (1..=4).map(|guest_port| PortsV1 {
        host_port: 80,
        guest_port,
    });
    let resets: Vec<_> = others.chain([call]).collect();
    assert_eq!(state.resets, resets);
    for life in 0..3 {
        guest.taken = 0;
        guest.put_back(&state);
        let mut host = guest.attach();
        host.write_all(b"request").unwrap();
        // A guest that speaks to one before it knows gets no second answer.
        guest.say(1, 80, OP_RW, 0, b"hello?");
        guest.settle();
        let (resets, rest): (Vec<_>, Vec<_>) = guest
            .packets()
            .into_iter()
            .partition(|(header, _)| header.op == OP_RST);
        let resets: Vec<_> = resets
            .iter()
            .map(|(header, _)| PortsV1 {
                host_port: header.src_port,
                guest_port: header.dst_port,
            })
            .collect();
        assert_eq!(resets, state.resets, "life {life}");
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].1, b"request");
        assert_eq!(guest.save().resets, []);
    }
}

#[test]
fn resets_that_a_guest_has_no_buffers_for_stand_in_the_snapshot() {
    let mut guest = Guest::restored();
    while guest.driver.rings[RX].avail_idx < 128 {
        guest.give_buffers(1);
    }
    let mut host = guest.attach();
    host.write_all(&vec![1; GUEST_ROOM as usize]).unwrap();
    guest.settle();
    while guest.driver.transport.device().resets.len() == 0 {
        guest.say(3, 99, OP_REQUEST, 0, &[]);
    }
    assert!(guest.driver.transport.is_quiet());
    let owed = PortsV1 {
        host_port: 99,
        guest_port: 3,
    };
    assert_eq!(guest.save().resets, [owed]);
}

#[test]
fn impossible_tables_are_refused() {
    let (guest, _host) = Guest::connected();
    let good = guest.driver.transport.save();
    let channel = good.device.channel.unwrap();
    let refusal = |device: VsockV1| {
        let state = crate::virtio::transport::VirtioV1 {
            device,
            ..good.clone()
        };
        let vsock = Vsock::new(HostPoll::new().unwrap().device(0));
        let mut device = crate::virtio::transport::Transport::new(vsock);
        match device.restore(&state, &guest.driver.ram) {
            Err(VirtioRestoreError::Device(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let impossible = DeviceRestoreError::Connection {
        guest_port: channel.guest_port,
        host_port: CHANNEL_PORT,
    };
    let bad = [
        ChannelV1 {
            guest_shutdown: 3,
            ..channel
        },
        ChannelV1 {
            guest_shutdown: 4,
            ..channel
        },
        ChannelV1 {
            host_shutdown: 4,
            ..channel
        },
        ChannelV1 {
            told_fwd_cnt: channel.rx_cnt.wrapping_sub(BUF_ALLOC + 1),
            ..channel
        },
        ChannelV1 {
            tx_cnt: channel.peer_fwd_cnt.wrapping_add((1 << 30) + 1),
            ..channel
        },
    ];
    for bad in bad {
        let state = VsockV1 {
            channel: Some(bad),
            resets: vec![],
        };
        assert_eq!(refusal(state), impossible, "{bad:?}");
    }
    let ports = |host_port, guest_port| PortsV1 {
        host_port,
        guest_port,
    };
    let own = ports(CHANNEL_PORT, channel.guest_port);
    for resets in [
        vec![ports(80, 1), ports(80, 1)],
        vec![ports(80, 2), ports(80, 1)],
        vec![ports(81, 1), ports(80, 2)],
        vec![ports(80, 1), own],
    ] {
        let state = VsockV1 {
            channel: Some(channel),
            resets,
        };
        assert!(matches!(
            refusal(state),
            DeviceRestoreError::Connection { .. }
        ));
    }
    let connections = state::MAX_RESETS + 1;
    let resets = (0..connections as u32).map(|port| ports(80, port));
    let state = VsockV1 {
        channel: None,
        resets: resets.collect(),
    };
    let many = DeviceRestoreError::TooManyConnections { connections };
    assert_eq!(refusal(state), many);
}
