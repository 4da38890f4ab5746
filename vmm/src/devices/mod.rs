//! Devices that are not virtio.
