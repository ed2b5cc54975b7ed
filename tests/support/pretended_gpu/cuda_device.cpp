// A CUDA device on which nothing can be done: fake tensors say "cuda", and autograd's engine takes them.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kCuda = c10::DeviceType::CUDA;
const c10::Device kDevice(kCuda, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kCuda> {
  c10::Device getDevice() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  long versionRuntimeCuDNN() const override { return 91900; }
  long versionCuDNN() const override { return 91900; }
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

}  // namespace

extern "C" void pretend() {
  static const Guard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(kCuda)].store(&guard);
  // torch keeps one object of hooks, made already: it gets the methods of ours.
  static const Hooks hooks;
  auto& made = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  *reinterpret_cast<void**>(&made) = *reinterpret_cast<void* const*>(&hooks);
}
