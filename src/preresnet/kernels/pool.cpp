// Where does a CPU tensor get its memory, so that a training step asks the system for none and leaves no holes?
//
// By default glibc gives every large tensor back to the system when it is freed, and the next one costs a page fault for
// each 4 KiB. Told to keep the memory, it fragments: a freed piece is a few bytes too small for the next aligned tensor
// of the same size, and small lasting allocations settle in the holes. Here large tensors live in one range of addresses
// of their own, in huge pages, placed by best fit; neighbours that are free become one. Small tensors stay with PyTorch's
// allocator. Nothing goes back to the system: a step needs what the step before needed.

#include <map>
#include <mutex>
#include <set>
#include <utility>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

constexpr size_t kSmallest = 128 << 10;  // below, holes cost little and glibc is fast
constexpr size_t kLine = 64;  // sizes are whole lines and nothing more: then maps of half a size fill the place of one
constexpr size_t kHugePage = 2 << 20;

class Pool final : public c10::Allocator {
public:
    // Reserves addresses, not memory: pages are taken when they are first written to.
    bool reserve() {
        size_ = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
        void* start = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED) return false;
        start_ = (char*)start;
        madvise(start, size_, MADV_HUGEPAGE);
        const size_t skipped = (kHugePage - (size_t)start_ % kHugePage) % kHugePage;
        release({skipped, size_ - skipped});
        return true;
    }

    c10::DataPtr allocate(size_t bytes) override {
        void* data = bytes < kSmallest ? nullptr : take(bytes);
        if (data == nullptr)
            data = c10::GetDefaultCPUAllocator()->raw_allocate(bytes);
        else
            c10::profiledCPUMemoryReporter().New(data, bytes);
        return {data, data, &Pool::free, c10::Device(c10::DeviceType::CPU)};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &Pool::free; }

    void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

    static void free(void* data);

private:
    struct Piece {
        size_t offset, bytes;
    };

    void* take(size_t bytes) {
        bytes = (bytes + kLine - 1) / kLine * kLine;
        std::lock_guard<std::mutex> guard(mutex_);
        auto found = by_size_.lower_bound({bytes, 0});  // the tightest that fits; of equal ones the lowest
        if (found == by_size_.end()) return nullptr;
        const Piece piece{found->second, found->first};
        forget(piece);
        if (piece.bytes > bytes) note({piece.offset + bytes, piece.bytes - bytes});
        taken_[piece.offset] = bytes;
        return start_ + piece.offset;
    }

    void release(Piece piece) {
        auto after = by_offset_.lower_bound(piece.offset);
        if (after != by_offset_.end() && after->first == piece.offset + piece.bytes) {
            const Piece next{after->first, after->second};
            forget(next);
            piece.bytes += next.bytes;
        }
        auto before = by_offset_.lower_bound(piece.offset);
        if (before != by_offset_.begin()) {
            --before;
            if (before->first + before->second == piece.offset) {
                const Piece previous{before->first, before->second};
                forget(previous);
                piece = {previous.offset, previous.bytes + piece.bytes};
            }
        }
        note(piece);
    }

    void note(Piece piece) {
        by_offset_[piece.offset] = piece.bytes;
        by_size_.insert({piece.bytes, piece.offset});
    }

    void forget(Piece piece) {
        by_offset_.erase(piece.offset);
        by_size_.erase({piece.bytes, piece.offset});
    }

    std::mutex mutex_;
    char* start_ = nullptr;
    size_t size_ = 0;
    std::map<size_t, size_t> by_offset_;              // free pieces
    std::set<std::pair<size_t, size_t>> by_size_;     // the same: bytes, offset
    std::map<size_t, size_t> taken_;
};

Pool* pool = nullptr;

void Pool::free(void* data) {
    char* place = (char*)data;
    if (place < pool->start_ || place >= pool->start_ + pool->size_) {
        c10::GetDefaultCPUAllocator()->raw_deallocate(data);
        return;
    }
    c10::profiledCPUMemoryReporter().Delete(data);
    std::lock_guard<std::mutex> guard(pool->mutex_);
    auto found = pool->taken_.find((size_t)(place - pool->start_));
    const Piece piece{found->first, found->second};
    pool->taken_.erase(found);
    pool->release(piece);
}

}  // namespace

// Whether tensors of this process come from the pool from now on.
extern "C" int keep_memory() {
    if (pool != nullptr) return 1;
    Pool* made = new Pool;  // lives as long as the process: tensors may outlast anything that could own it
    if (!made->reserve()) return 0;
    pool = made;
    c10::SetCPUAllocator(made, 255);
    return 1;
}
