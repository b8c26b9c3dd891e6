// A Vulkan layer that writes the size of every copy between the host and the device to the file
// that COPIES_LOG names, and to BUFFERS_LOG the most bytes that buffers on the device had at once.
// WebGPU makes such a copy through a buffer that is there for copies only.
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

namespace {

PFN_vkGetInstanceProcAddr next_instance = nullptr;
PFN_vkGetDeviceProcAddr next_device = nullptr;
PFN_vkCmdCopyBuffer next_copy = nullptr;
PFN_vkCreateBuffer next_create_buffer = nullptr;
PFN_vkDestroyBuffer next_destroy_buffer = nullptr;
std::mutex mutex;
std::set<VkBuffer> for_copies;
std::map<VkBuffer, VkDeviceSize> on_device;
VkDeviceSize held = 0, most = 0;  // bytes

void count_buffer(VkBuffer buffer, VkDeviceSize size) {
  static std::FILE* log =
      std::getenv("BUFFERS_LOG") ? std::fopen(std::getenv("BUFFERS_LOG"), "a") : nullptr;
  on_device[buffer] = size;
  held += size;
  if (!log || held <= most) return;
  most = held;
  std::fprintf(log, "%llu\n", static_cast<unsigned long long>(most));
  std::fflush(log);
}

void forget_buffer(VkBuffer buffer) {
  for_copies.erase(buffer);
  if (const auto found = on_device.find(buffer); found != on_device.end()) {
    held -= found->second;
    on_device.erase(found);
  }
}

VKAPI_ATTR VkResult VKAPI_CALL create_buffer(VkDevice device, const VkBufferCreateInfo* info,
                                             const VkAllocationCallbacks* allocator,
                                             VkBuffer* buffer) {
  const VkResult result = next_create_buffer(device, info, allocator, buffer);
  constexpr VkBufferUsageFlags kCopies =
      VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
  const std::scoped_lock lock(mutex);
  if (result != VK_SUCCESS) return result;
  if ((info->usage & ~kCopies) == 0) {
    for_copies.insert(*buffer);
  } else {
    count_buffer(*buffer, info->size);
  }
  return result;
}

VKAPI_ATTR void VKAPI_CALL destroy_buffer(VkDevice device, VkBuffer buffer,
                                          const VkAllocationCallbacks* allocator) {
  {
    const std::scoped_lock lock(mutex);
    forget_buffer(buffer);
  }
  next_destroy_buffer(device, buffer, allocator);
}

// Finds the loader's link to the next layer in the structures that come with the creation.
template <typename LinkInfo>
LinkInfo* link_of(const void* chain, VkStructureType type) {
  auto* info = static_cast<LinkInfo*>(const_cast<void*>(chain));
  while (info && (info->sType != type || info->function != VK_LAYER_LINK_INFO))
    info = static_cast<LinkInfo*>(const_cast<void*>(info->pNext));
  return info;
}

VKAPI_ATTR void VKAPI_CALL copy_buffer(VkCommandBuffer commands, VkBuffer from, VkBuffer to,
                                       uint32_t count, const VkBufferCopy* regions) {
  static std::FILE* log = std::fopen(std::getenv("COPIES_LOG"), "a");
  const std::scoped_lock lock(mutex);
  if (for_copies.contains(from) || for_copies.contains(to)) {
    for (uint32_t i = 0; i < count; ++i)
      std::fprintf(log, "%llu\n", static_cast<unsigned long long>(regions[i].size));
    std::fflush(log);
  }
  next_copy(commands, from, to, count, regions);
}

VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo* info,
                                               const VkAllocationCallbacks* allocator,
                                               VkInstance* instance) {
  auto* link = link_of<VkLayerInstanceCreateInfo>(info->pNext,
                                                  VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO);
  next_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  const auto create =
      reinterpret_cast<PFN_vkCreateInstance>(next_instance(VK_NULL_HANDLE, "vkCreateInstance"));
  return create(info, allocator, instance);
}

VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical,
                                             const VkDeviceCreateInfo* info,
                                             const VkAllocationCallbacks* allocator,
                                             VkDevice* device) {
  auto* link =
      link_of<VkLayerDeviceCreateInfo>(info->pNext, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
  const PFN_vkGetInstanceProcAddr get = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  next_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  const auto create = reinterpret_cast<PFN_vkCreateDevice>(get(VK_NULL_HANDLE, "vkCreateDevice"));
  const VkResult result = create(physical, info, allocator, device);
  if (result == VK_SUCCESS) {
    next_copy = reinterpret_cast<PFN_vkCmdCopyBuffer>(next_device(*device, "vkCmdCopyBuffer"));
    next_create_buffer =
        reinterpret_cast<PFN_vkCreateBuffer>(next_device(*device, "vkCreateBuffer"));
    next_destroy_buffer =
        reinterpret_cast<PFN_vkDestroyBuffer>(next_device(*device, "vkDestroyBuffer"));
  }
  return result;
}

struct Function {
  const char* name;
  PFN_vkVoidFunction function;
};

template <typename F>
PFN_vkVoidFunction plain(F function) {
  return reinterpret_cast<PFN_vkVoidFunction>(function);
}

// Returns the layer's own function of that name, or null.
template <std::size_t N>
PFN_vkVoidFunction find(const Function (&functions)[N], const char* name) {
  for (const Function& own : functions)
    if (std::strcmp(own.name, name) == 0) return own.function;
  return nullptr;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) PFN_vkVoidFunction VKAPI_CALL
copies_GetDeviceProcAddr(VkDevice device, const char* name) {
  static const Function functions[] = {{"vkGetDeviceProcAddr", plain(copies_GetDeviceProcAddr)},
                                       {"vkCmdCopyBuffer", plain(copy_buffer)},
                                       {"vkCreateBuffer", plain(create_buffer)},
                                       {"vkDestroyBuffer", plain(destroy_buffer)}};
  const PFN_vkVoidFunction own = find(functions, name);
  return own || !device ? own : next_device(device, name);
}

__attribute__((visibility("default"))) PFN_vkVoidFunction VKAPI_CALL
copies_GetInstanceProcAddr(VkInstance instance, const char* name) {
  static const Function functions[] = {{"vkGetInstanceProcAddr", plain(copies_GetInstanceProcAddr)},
                                       {"vkCreateInstance", plain(create_instance)},
                                       {"vkCreateDevice", plain(create_device)}};
  if (const PFN_vkVoidFunction own = find(functions, name)) return own;
  const PFN_vkVoidFunction own = copies_GetDeviceProcAddr(VK_NULL_HANDLE, name);
  return own ? own : next_instance(instance, name);
}

}  // extern "C"
