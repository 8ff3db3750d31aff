// Makes a torch without CUDA believe that there is one graphics card; pretend_card.py does the rest.
// It must be loaded before torch looks for one.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {

constexpr auto CARD = c10::DeviceType::CUDA;

struct CUDAHooks : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

struct Guard : c10::impl::NoOpDeviceGuardImpl<CARD> {
  Device here() const { return Device(CARD, 0); }
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, here()); }
  Device exchangeDevice(Device) const override { return here(); }
  Device getDevice() const override { return here(); }
  c10::Stream getStream(Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

const bool registered = [] {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(CARD)].store(new Guard);
  return true;
}();

}  // namespace at
