// A CUDA device pretended on the CPU. Tensors of it are torch's own, say "cuda:0", and keep their data in host memory.
// Every operation that reaches the CUDA backend goes to `run_on_host`, which refuses what CUDA refuses, notes what a
// GPU would make the host wait for, runs the CPU's kernel on the same memory, and hands the result back as CUDA's.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <mutex>
#include <sstream>
#include <unordered_map>
#include <unordered_set>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::Storage;
using c10::Stream;

const Device kDevice(DeviceType::CUDA, 0);

bool on_device(const Tensor& t) { return t.defined() && t.device().is_cuda(); }
bool compressed(const Tensor& t) { return t.layout() != c10::kStrided && !t.is_sparse(); }
bool on_host(const Tensor& t) { return t.defined() && t.device().is_cpu(); }

// ---------------------------------------------------------------- what Python hears of

enum Kind { kWait = 0, kUpload = 1 };
using Listener = void (*)(int kind, const char* operation);
Listener listener = nullptr;
std::unordered_set<std::string> cpu_only;  // operations for which native_functions.yaml names no CUDA kernel

void note(Kind kind, const std::string& operation) {
  if (listener != nullptr) listener(kind, operation.c_str());
}

// ---------------------------------------------------------------- memory

// A storage of the device owns the host storage with the same bytes, its twin.
struct Memory {
  Storage twin;
};

void release(void* memory) { delete static_cast<Memory*>(memory); }

c10::DataPtr data_of(const Storage& twin) {
  return c10::DataPtr(const_cast<void*>(twin.data()), new Memory{twin}, &release, kDevice);
}

Storage device_storage(const Storage& twin) {
  return Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), twin.nbytes(), data_of(twin), nullptr, /*resizable=*/false));
}

Storage twin_of(const Storage& storage) {
  if (storage.data_ptr().get_deleter() == &release) return static_cast<Memory*>(storage.data_ptr().get_context())->twin;
  // torch wrapped memory of ours by its address, as it does to write a storage to a file
  auto drop = [](void* held) { delete static_cast<Storage*>(held); };
  c10::DataPtr data(const_cast<void*>(storage.data()), new Storage(storage), drop, Device(DeviceType::CPU));
  return Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(data), nullptr, /*resizable=*/false));
}

std::mutex pinned_mutex;
std::unordered_set<const void*> pinned;

void unpin(void* context) {
  {
    std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned.erase(context);
  }
  c10::GetAllocator(DeviceType::CPU)->raw_deallocate(context);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* data = c10::GetAllocator(DeviceType::CPU)->raw_allocate(std::max<size_t>(n, 1));
    std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned.insert(data);
    return c10::DataPtr(data, data, &unpin, Device(DeviceType::CPU));
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, std::size_t n) const override { std::memcpy(to, from, n); }
};
PinnedAllocator pinned_allocator;

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  return pinned.count(data) > 0;
}

bool is_pinned(const Tensor& t) { return t.has_storage() && is_pinned(t.storage().data()); }

// ---------------------------------------------------------------- random numbers

struct Random final : c10::GeneratorImpl {
  explicit Random(at::Generator host) : GeneratorImpl(kDevice, DispatchKeySet(DispatchKey::CUDA)), host(std::move(host)) {}
  Random() : Random(at::detail::createCPUGenerator()) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  Random* clone_impl() const override { return new Random(host.clone()); }
  at::Generator host;
};

const at::Generator& default_generator() {
  static const at::Generator generator = at::make_generator<Random>();
  return generator;
}

// ---------------------------------------------------------------- operations

using Names = std::unordered_set<std::string>;

// Copies may span devices.
const Names kCopies = {"copy_", "set_", "_copy_from", "_copy_from_and_resize"};
// The indexed tensor decides the device; indices may lie on the host.
const Names kIndexing = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"};
// These take no scalar of the host where a tensor of the device is expected.
const Names kStrict = {
    "mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "mv", "addmv", "addmv_", "dot", "vdot", "addr", "cat",
    "gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "index_select", "index_add",
    "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_", "linalg_solve_triangular",
    "triangular_solve", "cholesky_solve", "_linalg_solve_ex", "linalg_lu_solve", "searchsorted", "bucketize",
    "masked_select", "embedding", "repeat_interleave", "take", "put_", "masked_scatter_", "masked_scatter"};
// cuBLAS has them for floating point alone.
const Names kProducts = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "mv", "addmv", "addmv_", "dot", "vdot",
                         "addbmm", "addbmm_"};
// Their CUDA kernels read a size, a sum or a status on the host before they return.
const Names kWaiting = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "equal", "bincount", "histc", "_linalg_eigh", "_linalg_svd", "linalg_eig",
    "_linalg_eigvals", "linalg_lstsq", "_coalesce", "_to_sparse", "_to_sparse_csr", "_to_sparse_csc", "multinomial"};

// What is known of an operation before it is called.
struct Traits {
  std::string name;
  bool copies, indexing, strict, product, waiting, indexed, refused;
  std::vector<bool> written, random;  // by argument

  explicit Traits(const c10::FunctionSchema& schema) : name(schema.name().substr(6)) {
    copies = kCopies.count(name);
    indexing = kIndexing.count(name);
    strict = kStrict.count(name);
    product = kProducts.count(name);
    waiting = kWaiting.count(name);
    indexed = name.find("index") != std::string::npos;
    refused = cpu_only.count(name + (schema.overload_name().empty() ? "" : "." + schema.overload_name()));
    for (const auto& argument : schema.arguments()) {
      written.push_back(argument.alias_info() != nullptr && argument.alias_info()->isWrite());
      random.push_back(argument.type()->str().find("Generator") != std::string::npos);
    }
  }
};

const Traits& traits_of(const c10::FunctionSchema& schema) {
  thread_local std::unordered_map<const c10::FunctionSchema*, Traits> known;  // torch keeps its schemas
  auto found = known.find(&schema);
  return found != known.end() ? found->second : known.emplace(&schema, Traits(schema)).first->second;
}

// ---------------------------------------------------------------- one call

struct Call {
  const c10::FunctionSchema& schema;
  torch::jit::Stack& stack;
  const Traits& traits;
  const std::string& name;
  size_t start;
  bool to_device = true;
  bool some_on_device = false, some_on_host = false;
  std::vector<Tensor> tensors;                                    // all tensors among the arguments
  std::vector<std::pair<Tensor, Tensor>> lowered;                 // of the device, on the host
  std::unordered_map<c10::TensorImpl*, Tensor> back;              // on the host → of the device
  std::unordered_map<c10::StorageImpl*, Storage> device_storages;  // by their twins

  Call(const c10::FunctionSchema& schema, torch::jit::Stack& stack)
      : schema(schema), stack(stack), traits(traits_of(schema)), name(traits.name),
        start(stack.size() - schema.arguments().size()) {
    for (size_t i = start; i < stack.size(); i++) collect(stack[i]);
    for (const Tensor& t : tensors) (on_device(t) ? some_on_device : some_on_host) = true;
  }

  const IValue* argument(const char* wanted) const {
    auto index = schema.argumentIndexWithName(wanted);
    return index ? &stack[start + *index] : nullptr;
  }

  bool given(const char* wanted) const {
    const IValue* value = argument(wanted);
    return value != nullptr && !value->isNone();
  }

  bool flag(const char* wanted) const { return given(wanted) && argument(wanted)->toBool(); }

  void collect(const IValue& value) {
    if (value.isTensor()) {
      if (value.toTensor().defined()) tensors.push_back(value.toTensor());
    } else if (value.isTensorList()) {
      for (const Tensor& t : value.toTensorVector()) if (t.defined()) tensors.push_back(t);
    } else if (value.isOptionalTensorList()) {
      for (const auto& t : value.toOptionalTensorVector()) if (t && t->defined()) tensors.push_back(*t);
    }
  }

  // ------------------------------------------------------------ refusals

  void refuse() const {
    TORCH_CHECK_NOT_IMPLEMENTED(!traits.refused, "Could not run '", schema.name(),
                                "' with arguments from the 'CUDA' backend.");
    if (some_on_device && some_on_host && !traits.copies) refuse_mixed_devices();
    if (!traits.copies || name == "copy_") refuse_overlaps();
    if (traits.product) refuse_integer_products();
    refuse_generators();
    if (name.rfind("linalg_lstsq", 0) == 0 && given("driver")) {
      TORCH_CHECK(argument("driver")->toStringRef() == "gels",
                  "torch.linalg.lstsq: `driver` other than `gels` is not supported on CUDA");
    }
  }

  void refuse_mixed_devices() const {
    constexpr auto message = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (";
    if (traits.indexing) {
      TORCH_CHECK(on_device(tensors[0]),
                  "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
      const IValue* values = argument("values");
      TORCH_CHECK(values == nullptr || on_device(values->toTensor()) || values->toTensor().dim() == 0, message,
                  schema.name(), ")");
      return;
    }
    for (const Tensor& t : tensors) {
      TORCH_CHECK(!on_host(t) || (t.dim() == 0 && !traits.strict), message, schema.name(), ")");
    }
    for (size_t i = 0; i < traits.written.size(); i++) {
      const IValue& value = stack[start + i];
      TORCH_CHECK(!traits.written[i] || !value.isTensor() || !on_host(value.toTensor()), message, schema.name(),
                  " writes to a tensor of the cpu)");
    }
  }

  // A kernel's threads run in no order: where one writes what another reads, the result is anyone's guess.
  void refuse_overlaps() const {
    for (size_t i = 0; i < traits.written.size(); i++) {
      const IValue& value = stack[start + i];
      if (!traits.written[i] || !value.isTensor() || !on_device(value.toTensor())) continue;
      for (const Tensor& t : tensors) {
        TORCH_CHECK(!overlap(value.toTensor(), t),
                    "unsupported operation: some elements of the input tensor and the written-to tensor refer to a single "
                    "memory location. Please clone() the tensor before performing the operation. (", schema.name(), ")");
      }
    }
  }

  static std::vector<int64_t> places(const Tensor& t) {
    std::vector<int64_t> all = {t.storage_offset()};
    for (int64_t k = 0; k < t.dim(); k++) {
      std::vector<int64_t> next;
      next.reserve(all.size() * t.size(k));
      for (int64_t base : all) for (int64_t j = 0; j < t.size(k); j++) next.push_back(base + j * t.stride(k));
      all.swap(next);
    }
    return all;
  }

  // Whether two different views of one storage share an element: looked up one by one, for views of up to a million.
  static bool overlap(const Tensor& a, const Tensor& b) {
    if (!on_device(b) || !a.has_storage() || !b.has_storage() || !a.storage().is_alias_of(b.storage())) return false;
    bool same = a.sizes() == b.sizes() && a.strides() == b.strides() && a.storage_offset() == b.storage_offset();
    if (same || a.dtype() != b.dtype() || a.numel() > 1 << 20 || b.numel() > 1 << 20) return false;
    std::vector<int64_t> written = places(a);
    std::unordered_set<int64_t> those(written.begin(), written.end());
    for (int64_t place : places(b)) if (those.count(place)) return true;
    return false;
  }

  void refuse_integer_products() const {
    for (const Tensor& t : tensors) {
      TORCH_CHECK_NOT_IMPLEMENTED(t.is_floating_point() || t.is_complex(), "\"", name, "_cuda\" not implemented for '",
                                  c10::toString(t.scalar_type()), "'");
    }
  }

  void refuse_generators() const {
    bool host = some_on_host && !some_on_device;
    for (size_t i = start; i < stack.size(); i++) {
      if (!stack[i].isGenerator()) continue;
      bool cuda = stack[i].toGenerator().device().is_cuda();
      TORCH_CHECK(cuda != host, "Expected a '", host ? "cpu" : "cuda", "' device type for generator but found '",
                  cuda ? "cuda" : "cpu", "'");
    }
  }

  // ------------------------------------------------------------ waits

  void count() const {
    if (name == "copy_") return count_copy(argument("self")->toTensor(), argument("src")->toTensor());
    if (!some_on_device) return;
    if (traits.waiting || (name == "repeat_interleave" && !given("output_size"))) note(kWait, name);
    if (traits.indexed && given("indices")) count_indices();
  }

  void count_copy(const Tensor& self, const Tensor& src) const {
    if (on_host(self) && on_device(src)) {
      if (!flag("non_blocking") || !is_pinned(self)) note(kWait, "copy to the host");
    } else if (on_device(self) && on_host(src) && src.numel() > 0) {
      // CUDA stages what does not block, and goes on.
      if (!flag("non_blocking")) note(kWait, "copy to the device");
      else if (!is_pinned(src)) note(kUpload, "copy to the device");
    }
  }

  void count_indices() const {
    const IValue& indices = *argument("indices");
    if (!indices.isOptionalTensorList()) return;
    auto all = indices.toOptionalTensorVector();
    int64_t masks = 0;
    bool only_masks = true;
    for (const auto& index : all) {
      if (!index || !index->defined()) continue;
      bool mask = index->scalar_type() == at::kBool || index->scalar_type() == at::kByte;
      masks += mask;
      only_masks = only_masks && mask;
      if (on_host(*index) && index->numel() > 0) note(kWait, name + " of the host's places");
    }
    // One value written under one mask is a masked fill, which waits for nothing.
    bool fill = given("values") && argument("values")->toTensor().numel() == 1 && only_masks && masks == 1 &&
                !flag("accumulate");
    if (!fill) for (int64_t i = 0; i < masks; i++) note(kWait, name + " with a mask");
  }

  // ------------------------------------------------------------ down to the host and up again

  Storage lower(const Storage& storage) {
    Storage twin = twin_of(storage);
    device_storages.emplace(twin.unsafeGetStorageImpl(), storage);
    return twin;
  }

  Tensor lower_strided(const Tensor& t) {
    auto host = at::detail::make_tensor<c10::TensorImpl>(lower(t.storage()), DispatchKeySet(DispatchKey::CPU), t.dtype());
    c10::TensorImpl* impl = host.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    host._set_conj(t.is_conj());
    host._set_neg(t.is_neg());
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
    return host;
  }

  Tensor lower_coo(const Tensor& t) {
    auto* from = static_cast<at::SparseTensorImpl*>(t.unsafeGetTensorImpl());
    auto host = at::detail::make_tensor<at::SparseTensorImpl>(DispatchKeySet(DispatchKey::SparseCPU), t.dtype());
    auto* impl = static_cast<at::SparseTensorImpl*>(host.unsafeGetTensorImpl());
    impl->resize_(from->sparse_dim(), from->dense_dim(), t.sizes());
    impl->set_indices_and_values_unsafe(lower(from->indices()), lower(from->values()));
    impl->set_coalesced(from->coalesced());
    return host;
  }

  Tensor lower_csr(const Tensor& t) {
    auto* from = static_cast<at::SparseCsrTensorImpl*>(t.unsafeGetTensorImpl());
    auto host = at::detail::make_tensor<at::SparseCsrTensorImpl>(
        DispatchKeySet(DispatchKey::SparseCsrCPU), Device(DeviceType::CPU), t.layout(), t.dtype());
    static_cast<at::SparseCsrTensorImpl*>(host.unsafeGetTensorImpl())
        ->set_member_tensors(lower(from->compressed_indices()), lower(from->plain_indices()), lower(from->values()),
                             t.sizes());
    return host;
  }

  Tensor lower(const Tensor& t) {
    if (!on_device(t)) return t;
    Tensor host = t.is_sparse() ? lower_coo(t) : compressed(t) ? lower_csr(t) : lower_strided(t);
    back.emplace(host.unsafeGetTensorImpl(), t);
    lowered.emplace_back(t, host);
    return host;
  }

  IValue lower(const IValue& value) {
    if (value.isTensor()) return lower(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> all;
      for (const Tensor& t : value.toTensorVector()) all.push_back(lower(t));
      return all;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> all;
      for (const auto& t : value.toOptionalTensorVector()) all.push_back(t ? std::optional<Tensor>(lower(*t)) : t);
      return all;
    }
    if (value.isStorage()) return value.toStorage().device().is_cuda() ? IValue(lower(value.toStorage())) : value;
    if (value.isDevice() && value.toDevice().is_cuda()) return Device(DeviceType::CPU);
    if (value.isGenerator()) return static_cast<Random*>(value.toGenerator().unsafeGetGeneratorImpl())->host;
    return value;
  }

  void lower_all() {
    for (size_t i = 0; i < schema.arguments().size(); i++) {
      IValue& value = stack[start + i];
      const std::string& argument = schema.arguments()[i].name();
      if (value.isDevice() && argument == "device") to_device = value.toDevice().is_cuda();
      if (argument == "pin_memory") value = IValue();
      else if (argument == "driver" && name == "_linalg_svd") value = IValue();  // for cuSOLVER alone
      else if (traits.random[i] && value.isNone()) value = IValue(static_cast<Random*>(default_generator().unsafeGetGeneratorImpl())->host);
      else value = lower(IValue(value));
    }
  }

  Storage lift(const Storage& twin) {
    auto found = device_storages.find(twin.unsafeGetStorageImpl());
    if (found != device_storages.end()) return found->second;
    return device_storages.emplace(twin.unsafeGetStorageImpl(), device_storage(twin)).first->second;
  }

  Tensor lift(const Tensor& host) {
    if (!host.defined()) return host;
    auto found = back.find(host.unsafeGetTensorImpl());
    if (found != back.end()) return found->second;
    for (const Tensor& t : tensors) if (t.is_same(host)) return host;
    if (!to_device || !on_host(host)) return host;
    if (host.is_sparse()) return lift_coo(host);
    if (compressed(host)) return lift_csr(host);
    auto t = at::detail::make_tensor<c10::TensorImpl>(lift(host.storage()), DispatchKeySet(DispatchKey::CUDA), host.dtype());
    t.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    t._set_conj(host.is_conj());
    t._set_neg(host.is_neg());
    return t;
  }

  Tensor lift_coo(const Tensor& host) {
    auto* from = static_cast<at::SparseTensorImpl*>(host.unsafeGetTensorImpl());
    auto t = at::detail::make_tensor<at::SparseTensorImpl>(DispatchKeySet(DispatchKey::SparseCUDA), host.dtype());
    auto* impl = static_cast<at::SparseTensorImpl*>(t.unsafeGetTensorImpl());
    impl->resize_(from->sparse_dim(), from->dense_dim(), host.sizes());
    impl->set_indices_and_values_unsafe(lift(from->indices()), lift(from->values()));
    impl->set_coalesced(from->coalesced());
    return t;
  }

  Tensor lift_csr(const Tensor& host) {
    auto* from = static_cast<at::SparseCsrTensorImpl*>(host.unsafeGetTensorImpl());
    auto t = at::detail::make_tensor<at::SparseCsrTensorImpl>(
        DispatchKeySet(DispatchKey::SparseCsrCUDA), kDevice, host.layout(), host.dtype());
    static_cast<at::SparseCsrTensorImpl*>(t.unsafeGetTensorImpl())
        ->set_member_tensors(lift(from->compressed_indices()), lift(from->plain_indices()), lift(from->values()),
                             host.sizes());
    return t;
  }

  // What the kernel resized, or gave another storage, on the host.
  void carry_over() {
    for (auto& [device, host] : lowered) {
      if (!host.has_storage()) continue;
      Storage storage = device.storage();
      c10::TensorImpl* impl = device.unsafeGetTensorImpl();
      if (storage.data_ptr().get_deleter() != &release) continue;
      if (twin_of(storage).unsafeGetStorageImpl() != host.storage().unsafeGetStorageImpl()) {
        impl->set_storage_keep_dtype(lift(host.storage()));
      } else if (storage.data() != host.storage().data() || storage.nbytes() != host.storage().nbytes()) {
        storage.unsafeGetStorageImpl()->set_data_ptr_noswap(data_of(host.storage()));
        storage.unsafeGetStorageImpl()->set_nbytes(host.storage().nbytes());
      }
      if (host.sizes() != device.sizes() || host.strides() != device.strides() ||
          host.storage_offset() != device.storage_offset()) {
        impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
      }
    }
  }

  void lift_results() {
    for (size_t i = stack.size() - schema.returns().size(); i < stack.size(); i++) {
      IValue& value = stack[i];
      if (value.isTensor()) {
        value = lift(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<Tensor> all;
        for (const Tensor& t : value.toTensorVector()) all.push_back(lift(t));
        value = all;
      }
    }
  }
};

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call(op.schema(), *stack);
  call.refuse();
  call.count();
  if (call.name == "_fused_sdp_choice") {  // the CPU's fused kernels have names of their own
    torch::jit::drop(*stack, op.schema().arguments().size());
    torch::jit::push(*stack, int64_t(0));
    return;
  }
  call.lower_all();
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.callBoxed(stack);
  }
  call.carry_over();
  call.lift_results();
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }
TORCH_LIBRARY_IMPL(_, SparseCUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }
TORCH_LIBRARY_IMPL(_, SparseCsrCUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

Tensor zeros(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>) {
  return at::zeros_symint(size, at::TensorOptions().dtype(dtype).device(device));
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("_efficientzerotensor", zeros);  // costs memory, and is right
}

// ---------------------------------------------------------------- the device, as torch's core asks for it

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override { return d; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream getDefaultStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream getStreamFromGlobalPool(Device d, bool) const override { return Stream(Stream::DEFAULT, d); }
  Stream getNewStream(Device d, int) const override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const override { return s; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeEvent(void*) const override { note(kWait, "synchronize an event"); }
  void synchronizeStream(const Stream&) const override { note(kWait, "synchronize a stream"); }
  void synchronizeDevice(const DeviceIndex) const override { note(kWait, "synchronize the device"); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace

namespace at {

struct PretendedHooks final : CUDAHooksInterface {
  explicit PretendedHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool hasCuSOLVER() const override { return true; }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  Device getDeviceFromPtr(void*) const override { return kDevice; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  // The first is the default one: torch.cuda.default_generators is filled with it.
  Generator getNewGenerator(DeviceIndex) const override {
    static std::atomic<bool> first{true};
    return first.exchange(false) ? default_generator() : make_generator<Random>();
  }
  void deviceSynchronize(DeviceIndex) const override { note(kWait, "synchronize the device"); }
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", PretendedHooks);

}  // namespace at

// These stand before torch's own, which a build for the CPU compiled without CUDA.
namespace at::accelerator {
__attribute__((visibility("default"))) std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
__attribute__((visibility("default"))) bool isAccelerator(c10::DeviceType d) { return d == c10::DeviceType::CUDA; }
}  // namespace at::accelerator

extern "C" {
__attribute__((visibility("default"))) void pretend_listen(Listener f) { listener = f; }
// Takes over the operations that have a kernel for this key in a build with CUDA: many of them have one for all devices
// as well, which would not come to the fallback.
__attribute__((visibility("default"))) void pretend_register(const char* key, const char* names) {
  auto* library = new torch::Library(torch::Library::IMPL, "aten", c10::parseDispatchKey(key), __FILE__, __LINE__);
  std::istringstream all(names);
  for (std::string name; all >> name;) {
    library->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  }
}
__attribute__((visibility("default"))) void pretend_refuse(const char* names) {
  std::istringstream all(names);
  for (std::string name; all >> name;) cpu_only.insert(name);
}
}
