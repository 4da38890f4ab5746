# What a guest finds of its machine, device by device. Runs in the guest, as root, in
# the name space of the root program. A check is a function that fails by an assertion;
# `machine` has what the host knows: vcpus, disks (one [name, size, crc32 of the
# last MiB] each), virtio (how many devices), wakes (how often this life began from a snapshot).
import mmap, re, subprocess, zlib

checks = {}

def check(function):
    checks[function.__name__] = function
    return function

def read(path):
    with open(path) as file:
        return file.read()

def table(name):
    with open("/sys/firmware/acpi/tables/" + name, "rb") as file:
        return file.read()

def dmesg():
    return subprocess.run(["dmesg"], capture_output=True, text=True).stdout

def interrupts(name):
    """Counts by processor of the line of /proc/interrupts that ends or begins with name."""
    for line in read("/proc/interrupts").splitlines():
        words = line.split()
        if name in (words[0].rstrip(":"), words[-1]):
            return [int(word) for word in words[1:] if word.isdigit()]
    raise AssertionError("no interrupt " + name)

def direct(path, length, offset=0):
    """Reads past the page cache."""
    buffer = mmap.mmap(-1, length)
    device = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        done = 0
        while done < length:
            got = os.preadv(device, [memoryview(buffer)[done:]], offset + done)
            assert got > 0, "the disk ends early"
            done += got
    finally:
        os.close(device)
    return buffer[:]

@check
def processors(machine):
    count = machine["vcpus"]
    assert sorted(os.sched_getaffinity(0)) == list(range(count))
    for cpu in range(count):
        place = f"/sys/devices/system/cpu/cpu{cpu}/topology/"
        found = [int(read(place + name)) for name in ("physical_package_id", "core_id", "thread_siblings_list")]
        assert found == [0, cpu, cpu], found

@check
def local_apics(machine):
    everywhere = sorted(os.sched_getaffinity(0))
    before = interrupts("LOC")
    for cpu in everywhere:
        os.sched_setaffinity(0, [cpu])
        # Busy: an idle processor without a timer has nothing to count.
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass
    os.sched_setaffinity(0, everywhere)
    after = interrupts("LOC")
    assert len(after) == machine["vcpus"] and all(a > b for a, b in zip(after, before)), (before, after)

@check
def acpi_tables(machine):
    madt, at, kinds = table("APIC"), 44, []
    while at < len(madt):
        kinds.append(madt[at])
        if madt[at] == 0:
            assert madt[at + 2 : at + 8] == bytes([kinds.count(0) - 1] * 2 + [1, 0, 0, 0])
        at += madt[at + 1]
    assert kinds == [0] * machine["vcpus"] + [1], kinds
    fadt = table("FACP")
    assert struct.unpack_from("<I", fadt, 112)[0] & 1 << 20, "not hardware-reduced"
    assert fadt[116:128] == bytes([1, 8, 0, 1, 2, 6]) + bytes(6), "no reset register"
    dsdt = table("DSDT")
    assert dsdt.count(b"LNRO0005") == machine["virtio"]
    for device in (b"VM_Gen_Counter", b"ACPI0013", b"QEMU0001", b"_S5_"):
        assert dsdt.count(device) >= 1, device

@check
def generation(machine):
    assert interrupts("ACPI:Ged")[0] == machine["wakes"]
    assert dmesg().count("reseeded due to virtual machine fork") == machine["wakes"]

@check
def panic_notifier(machine):
    driver = "/sys/bus/platform/drivers/pvpanic-mmio"
    assert any(name.startswith("QEMU0001") for name in os.listdir(driver)), os.listdir(driver)

@check
def clocks(machine):
    assert read("/sys/devices/system/clocksource/clocksource0/current_clocksource").strip() in ("tsc", "kvm-clock")
    for clock in (time.CLOCK_MONOTONIC, time.CLOCK_REALTIME, time.CLOCK_BOOTTIME):
        seen = [time.clock_gettime_ns(clock) for _ in range(1000)]
        assert seen == sorted(seen), clock
    begin = time.monotonic()
    time.sleep(0.05)
    assert time.monotonic() - begin >= 0.05
    for complaint in ("clocksource: Marking", "soft lockup", "rcu_sched detected", "skewed"):
        assert complaint not in dmesg(), complaint

@check
def watchdog(machine):
    """The silence of a kernel only means something where it would complain."""
    for name in ("watchdog", "soft_watchdog"):
        assert read("/proc/sys/kernel/" + name).strip() == "1", name
    assert read("/proc/sys/kernel/watchdog_cpumask").strip() in ("0", "0-%d" % (machine["vcpus"] - 1))
    # Of the gravest kind, which reaches every console: what the host hears in `serial`.
    assert int(read("/proc/sys/kernel/printk").split()[0]) > 0

@check
def serial(machine):
    assert re.search(r"0: uart:16550A port:000003F8", read("/proc/tty/driver/serial"))
    # The host looks whether it arrives.
    with open("/proc/sys/kernel/printk_devkmsg", "w") as setting:
        setting.write("on\n")
    log = os.open("/dev/kmsg", os.O_WRONLY)
    os.write(log, b"<0>serial line, life %d\n" % machine["wakes"])
    os.close(log)

@check
def entropy(machine):
    assert read("/sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    with open("/dev/hwrng", "rb", buffering=0) as source:
        one, other = source.read(64), source.read(64)
    assert len(one) == 64 and one != other

@check
def disks(machine):
    for name, size, crc in machine["disks"]:
        assert int(read(f"/sys/block/{name}/size")) * 512 == size
        assert read(f"/sys/block/{name}/ro").strip() == "1"
        assert zlib.crc32(direct(f"/dev/{name}", 1 << 20, size - (1 << 20))) == crc, name
        try:
            os.pwrite(os.open(f"/dev/{name}", os.O_WRONLY), bytes(512), 0)
        except OSError:
            continue
        raise AssertionError(name + " can be written")

@check
def sockets(machine):
    import fcntl
    with open("/dev/vsock") as device:
        cid = fcntl.ioctl(device, 0x7B9, struct.pack("I", 0))
    assert struct.unpack("I", cid)[0] == socket.VMADDR_CID_HOST + 1
    # Nobody listens there, and that is said at once.
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as other:
        other.settimeout(10)
        try:
            other.connect((socket.VMADDR_CID_HOST, 4711))
            raise AssertionError("somebody listens")
        except (ConnectionResetError, ConnectionRefusedError):
            pass

@check
def device_interrupts(machine):
    """Each virtio device interrupts on its own line of the I/O APIC."""
    work = {"virtio0": sockets, "virtio1": disks, "virtio%d" % (machine["virtio"] - 1): entropy}
    for name, use in work.items():
        before = sum(interrupts(name))
        use(machine)
        assert sum(interrupts(name)) > before, name
    lines = [line for line in read("/proc/interrupts").splitlines() if " virtio" in line]
    assert len(lines) == machine["virtio"] and all("IO-APIC" in line and "edge" in line for line in lines), lines

def run_checks(machine):
    found = {}
    for name, function in checks.items():
        try:
            function(machine)
            found[name] = "ok"
        except BaseException:
            found[name] = traceback.format_exc()
    return json.dumps(found)
