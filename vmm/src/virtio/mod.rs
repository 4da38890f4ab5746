//! virtio devices over MMIO.
