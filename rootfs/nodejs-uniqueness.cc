// What a Node.js process has in common with every other of its snapshot, and JavaScript
// cannot reach: the state of OpenSSL's generators.
//
// `/proc/sys/kernel/random/boot_id` is another file in each life of a microVM, in place: guest-init
// writes it before it confirms a resume. Mapped, it costs no system call to look at. Each draw
// from OpenSSL looks at it first, on whatever thread it is, and renews the root of all its generators
// when it has changed; so there is no moment after a restore at which one could be drawn from the
// snapshot's state.

#include <fcntl.h>
#include <node_api.h>
#include <openssl/rand.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

// The deprecated way to stand before every draw is the only one without a provider of our own.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace {

const char kLife[] = "/proc/sys/kernel/random/boot_id";
constexpr size_t kPage = 4096;
constexpr int kSeedBytes = 64;

// The first 16 characters of the id, as two words. Never unmapped.
const volatile uint64_t* life = nullptr;
std::atomic<uint64_t> seen_low, seen_high;
std::mutex renewing;
const RAND_METHOD* openssl = nullptr;

bool IsSeen() {
  return seen_low.load(std::memory_order_acquire) == life[0] &&
         seen_high.load(std::memory_order_acquire) == life[1];
}

// Whether OpenSSL's generators are this life's own.
bool Renewed() {
  if (IsSeen()) return true;
  std::lock_guard<std::mutex> turn(renewing);
  if (IsSeen()) return true;
  const uint64_t low = life[0], high = life[1];
  unsigned char fresh[kSeedBytes];
  if (getrandom(fresh, sizeof fresh, 0) != static_cast<ssize_t>(sizeof fresh)) return false;
  // Reseeds the root; every other generator notices before its next draw.
  const int added = openssl->add(fresh, sizeof fresh, sizeof fresh);
  OPENSSL_cleanse(fresh, sizeof fresh);
  if (added != 1) return false;
  seen_low.store(low, std::memory_order_release);
  seen_high.store(high, std::memory_order_release);
  return true;
}

int Bytes(unsigned char* buffer, int length) {
  return Renewed() ? openssl->bytes(buffer, length) : 0;
}

int Seed(const void* buffer, int length) { return openssl->seed(buffer, length); }

int Add(const void* buffer, int length, double randomness) {
  return openssl->add(buffer, length, randomness);
}

int Status() { return openssl->status(); }

const RAND_METHOD kMethod = {Seed, Bytes, nullptr, Add, Bytes, Status};

bool Watch() {
  static std::once_flag once;
  static bool watching = false;
  std::call_once(once, [] {
    const int file = open(kLife, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    void* page = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page == MAP_FAILED) return;
    life = static_cast<const volatile uint64_t*>(page);
    seen_low = life[0];
    seen_high = life[1];
    openssl = RAND_OpenSSL();
    watching = RAND_set_rand_method(&kMethod) == 1;
  });
  return watching;
}

// `life`: the id's first 16 characters, as they are now.
napi_value Init(napi_env env, napi_value exports) {
  napi_value buffer;
  if (!Watch()) {
    napi_throw_error(env, nullptr, "the machine's boot_id cannot be watched");
    return nullptr;
  }
  void* bytes = const_cast<uint64_t*>(life);
  if (napi_create_external_arraybuffer(env, bytes, 16, nullptr, nullptr, &buffer) != napi_ok ||
      napi_set_named_property(env, exports, "life", buffer) != napi_ok) {
    return nullptr;
  }
  return exports;
}

}  // namespace

NAPI_MODULE(NODE_GYP_MODULE_NAME, Init)
