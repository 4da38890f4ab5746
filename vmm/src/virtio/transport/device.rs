//! The transport: registers in, queue work and interrupts out.

use super::registers as reg;
use super::status::{self, Step};
use super::{MmioDevice, Signals, TransportV1, VirtioRestoreError, VirtioV1};
use crate::memory::GuestRam;
use crate::poll::Ready;
use crate::virtio::queue::{QueueRegister, VirtQueue};
use crate::virtio::{DeviceError, F_EVENT_IDX, F_VERSION_1, Progress, VirtioDevice};

/// A device with its registers and queues.
#[derive(Debug)]
pub struct Transport<D> {
    device: D,
    queues: Vec<VirtQueue>,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    status: u32,
    interrupt_status: u32,
    config_generation: u32,
    /// Queues whose work stopped at its bound, one bit each.
    backlog: u32,
}

impl<D: VirtioDevice> Transport<D> {
    /// A device that no driver has touched yet.
    pub fn new(device: D) -> Self {
        let queues = D::QUEUE_SIZES.iter().map(|size| VirtQueue::new(*size));
        Self {
            device,
            queues: queues.collect(),
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            status: 0,
            interrupt_status: 0,
            config_generation: 0,
            backlog: 0,
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, to be changed from the host's side.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Whether the driver is live and has broken no rule.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED)
            == status::DRIVER_OK
    }

    /// Lets the device work on its queues, if it is live, and tells the driver what
    /// came of it. What is left at the bound counts as `queue`'s.
    pub fn run(
        &mut self,
        queue: usize,
        ram: &GuestRam,
        work: impl FnOnce(&mut D, &mut [VirtQueue], &GuestRam) -> Result<Progress, DeviceError>,
    ) -> Signals {
        if !self.is_running() {
            return Signals::default();
        }
        let done = work(&mut self.device, &mut self.queues, ram);
        let mut signals = Signals::default();
        match done {
            Ok(Progress::Done) => {}
            Ok(Progress::More) => {
                self.backlog |= queue_bit(queue);
                signals.more_work = true;
            }
            Err(_) => return self.give_up(),
        }
        // Every queue: work on one may use buffers of another.
        for queue in &mut self.queues {
            match queue.take_signal(ram) {
                Ok(wanted) => signals.interrupt |= wanted,
                Err(_) => return self.give_up(),
            }
        }
        if signals.interrupt {
            self.interrupt_status |= reg::INTERRUPT_USED;
        }
        signals
    }

    /// The state for a snapshot.
    #[must_use]
    pub fn save(&self) -> VirtioV1<D::State> {
        VirtioV1 {
            transport: TransportV1 {
                device_id: self.device.device_id(),
                driver_features: self.driver_features,
                device_features_sel: self.device_features_sel,
                driver_features_sel: self.driver_features_sel,
                queue_sel: self.queue_sel,
                status: self.status,
                interrupt_status: self.interrupt_status,
                config_generation: self.config_generation,
                queues: self.queues.iter().map(VirtQueue::save).collect(),
            },
            device: self.device.save(),
        }
    }

    /// Puts device and registers into `state`, which may be hostile.
    ///
    /// # Errors
    /// [`VirtioRestoreError`]; the device must not be used afterwards.
    pub fn restore(
        &mut self,
        state: &VirtioV1<D::State>,
        ram: &GuestRam,
    ) -> Result<(), VirtioRestoreError> {
        let transport = &state.transport;
        self.check(transport)?;
        let event_idx = transport.driver_features & F_EVENT_IDX != 0;
        for (index, (queue, state)) in self.queues.iter_mut().zip(&transport.queues).enumerate() {
            queue
                .restore(state, event_idx, ram)
                .map_err(|source| VirtioRestoreError::Queue {
                    queue: index,
                    source,
                })?;
        }
        self.device.reset();
        if transport.status & status::DRIVER_OK != 0 {
            self.device.activate(transport.driver_features);
        } else {
            self.device.mute();
        }
        self.device
            .restore(&state.device)
            .map_err(VirtioRestoreError::Device)?;
        self.driver_features = transport.driver_features;
        self.device_features_sel = transport.device_features_sel;
        self.driver_features_sel = transport.driver_features_sel;
        self.queue_sel = transport.queue_sel;
        self.status = transport.status;
        self.interrupt_status = transport.interrupt_status;
        self.config_generation = transport.config_generation;
        self.backlog = 0;
        Ok(())
    }

    fn check(&self, state: &TransportV1) -> Result<(), VirtioRestoreError> {
        let machine = self.device.device_id();
        if state.device_id != machine {
            return Err(VirtioRestoreError::DeviceId {
                snapshot: state.device_id,
                machine,
            });
        }
        if !status::is_reachable(state.status) {
            return Err(VirtioRestoreError::Status(state.status));
        }
        if state.status & status::FEATURES_OK != 0 && !self.accepts(state.driver_features) {
            return Err(VirtioRestoreError::Features {
                snapshot: state.driver_features,
                machine: self.device.features(),
            });
        }
        if state.interrupt_status & !(reg::INTERRUPT_USED | reg::INTERRUPT_CONFIG) != 0 {
            return Err(VirtioRestoreError::InterruptStatus(state.interrupt_status));
        }
        if state.queues.len() != self.queues.len() {
            return Err(VirtioRestoreError::QueueCount {
                snapshot: state.queues.len(),
                machine: self.queues.len(),
            });
        }
        Ok(())
    }

    fn accepts(&self, features: u64) -> bool {
        features & !self.device.features() == 0 && features & F_VERSION_1 != 0
    }

    fn write_status(&mut self, value: u32) {
        match status::step(self.status, value) {
            Step::None => {}
            Step::Reset => self.reset(),
            Step::Set(bits) => self.status |= bits,
            Step::CheckFeatures => {
                if self.accepts(self.driver_features) {
                    self.status |= status::FEATURES_OK;
                }
            }
            Step::GoLive => {
                self.status |= status::DRIVER_OK;
                self.device.activate(self.driver_features);
            }
        }
    }

    fn reset(&mut self) {
        self.device.mute();
        self.device.reset();
        self.queues.iter_mut().for_each(VirtQueue::reset);
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.status = 0;
        self.interrupt_status = 0;
        self.backlog = 0;
    }

    /// The driver broke a rule (section 2.1.2): tell it, and do nothing until it
    /// resets the device.
    fn give_up(&mut self) -> Signals {
        self.status |= status::NEEDS_RESET;
        self.backlog = 0;
        self.device.mute();
        let live = self.status & status::DRIVER_OK != 0;
        if live {
            self.interrupt_status |= reg::INTERRUPT_CONFIG;
        }
        Signals {
            interrupt: live,
            more_work: false,
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            _ => {}
        }
    }

    fn read_device_features(&self) -> u32 {
        let features = self.device.features();
        match self.device_features_sel {
            0 => low_half(features),
            1 => low_half(features >> 32),
            _ => 0,
        }
    }

    fn selected(&self) -> Option<&VirtQueue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue, while the driver may set queues up: between
    /// `FEATURES_OK` and `DRIVER_OK`.
    fn selected_for_setup(&mut self) -> Option<&mut VirtQueue> {
        let phase = status::FEATURES_OK | status::DRIVER_OK | status::FAILED | status::NEEDS_RESET;
        if self.status & phase != status::FEATURES_OK {
            return None;
        }
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }

    fn write_queue_ready(&mut self, value: u32, ram: &GuestRam) -> Signals {
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        if value == 1 {
            let usable = self
                .selected_for_setup()
                .is_none_or(|queue| queue.make_ready(event_idx, ram));
            if !usable {
                return self.give_up();
            }
        } else if value == 0
            && let Ok(selected) = usize::try_from(self.queue_sel)
            && let Some(queue) = self.queues.get_mut(selected)
        {
            queue.stop();
        }
        Signals::default()
    }

    fn write_register(&mut self, offset: u64, value: u32, ram: &GuestRam) -> Signals {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES => self.write_driver_features(value),
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NUM => {
                if let Some(queue) = self.selected_for_setup() {
                    queue.set_size(value);
                }
            }
            reg::QUEUE_READY => return self.write_queue_ready(value, ram),
            reg::QUEUE_NOTIFY => {
                return match usize::try_from(value) {
                    Ok(queue) => self.notify(queue, ram),
                    Err(_) => Signals::default(),
                };
            }
            reg::INTERRUPT_ACK => self.interrupt_status &= !value,
            reg::STATUS => self.write_status(value),
            _ => {
                if let Some((register, high)) = address_register(offset)
                    && let Some(queue) = self.selected_for_setup()
                {
                    queue.set_address(register, high, value);
                }
            }
        }
        Signals::default()
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::DEVICE_VERSION => reg::VERSION,
            reg::DEVICE_ID => self.device.device_id(),
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => self.read_device_features(),
            reg::QUEUE_NUM_MAX => self.selected().map_or(0, |queue| queue.max_size().into()),
            reg::QUEUE_READY => self.selected().is_some_and(VirtQueue::is_ready).into(),
            reg::INTERRUPT_STATUS => self.interrupt_status,
            reg::STATUS => self.status,
            // A region that does not exist has the length -1 (section 4.2.2).
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }
}

impl<D: VirtioDevice> MmioDevice for Transport<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.read_config(offset, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], ram: &GuestRam) -> Signals {
        // None of our devices has a writable configuration space.
        match <[u8; 4]>::try_from(data) {
            Ok(word) if offset < reg::CONFIG => {
                self.write_register(offset, u32::from_le_bytes(word), ram)
            }
            _ => Signals::default(),
        }
    }

    fn notify(&mut self, queue: usize, ram: &GuestRam) -> Signals {
        if !self.queues.get(queue).is_some_and(VirtQueue::is_ready) {
            return Signals::default();
        }
        self.run(queue, ram, |device, queues, ram| {
            device.process(queue, queues, ram)
        })
    }

    fn continue_work(&mut self, ram: &GuestRam) -> Signals {
        let backlog = std::mem::take(&mut self.backlog);
        let mut signals = Signals::default();
        for queue in (0..self.queues.len()).filter(|queue| backlog & queue_bit(*queue) != 0) {
            signals.merge(self.notify(queue, ram));
        }
        signals
    }

    fn host_ready(&mut self, ready: &[Ready], ram: &GuestRam) -> Signals {
        if !self.is_running() {
            self.device.mute();
            return Signals::default();
        }
        self.run(0, ram, |device, queues, ram| {
            device.host_ready(ready, queues, ram)
        })
    }

    fn is_quiet(&self) -> bool {
        self.backlog == 0 && self.device.is_quiet()
    }
}

fn queue_bit(queue: usize) -> u32 {
    u32::try_from(queue)
        .ok()
        .and_then(|queue| 1_u32.checked_shl(queue))
        .unwrap_or(0)
}

fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn address_register(offset: u64) -> Option<(QueueRegister, bool)> {
    Some(match offset {
        reg::QUEUE_DESC_LOW => (QueueRegister::DescTable, false),
        reg::QUEUE_DESC_HIGH => (QueueRegister::DescTable, true),
        reg::QUEUE_DRIVER_LOW => (QueueRegister::AvailRing, false),
        reg::QUEUE_DRIVER_HIGH => (QueueRegister::AvailRing, true),
        reg::QUEUE_DEVICE_LOW => (QueueRegister::UsedRing, false),
        reg::QUEUE_DEVICE_HIGH => (QueueRegister::UsedRing, true),
        _ => return None,
    })
}
