// A Vulkan layer that writes the size of every copy between the host and the device to the file
// that COPIES_LOG names. WebGPU makes such a copy through a buffer that is there for copies only.
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

namespace {

PFN_vkGetInstanceProcAddr next_instance = nullptr;
PFN_vkGetDeviceProcAddr next_device = nullptr;
PFN_vkCmdCopyBuffer next_copy = nullptr;
PFN_vkCreateBuffer next_create_buffer = nullptr;
std::mutex mutex;
std::set<VkBuffer> for_copies;

VKAPI_ATTR VkResult VKAPI_CALL create_buffer(VkDevice device, const VkBufferCreateInfo* info,
                                             const VkAllocationCallbacks* allocator,
                                             VkBuffer* buffer) {
  const VkResult result = next_create_buffer(device, info, allocator, buffer);
  constexpr VkBufferUsageFlags kCopies =
      VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
  const std::scoped_lock lock(mutex);
  if ((info->usage & ~kCopies) == 0) {
    for_copies.insert(*buffer);
  } else {
    for_copies.erase(*buffer);  // a handle may be used again
  }
  return result;
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
  const VkResult result = create(info, allocator, instance);
  return result;
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
  }
  return result;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) PFN_vkVoidFunction VKAPI_CALL
copies_GetDeviceProcAddr(VkDevice device, const char* name) {
  if (std::strcmp(name, "vkGetDeviceProcAddr") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(copies_GetDeviceProcAddr);
  if (std::strcmp(name, "vkCmdCopyBuffer") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(copy_buffer);
  if (std::strcmp(name, "vkCreateBuffer") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(create_buffer);
  return next_device(device, name);
}

__attribute__((visibility("default"))) PFN_vkVoidFunction VKAPI_CALL
copies_GetInstanceProcAddr(VkInstance instance, const char* name) {
  if (std::strcmp(name, "vkGetInstanceProcAddr") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(copies_GetInstanceProcAddr);
  if (std::strcmp(name, "vkCreateInstance") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(create_instance);
  if (std::strcmp(name, "vkCreateDevice") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(create_device);
  if (std::strcmp(name, "vkGetDeviceProcAddr") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(copies_GetDeviceProcAddr);
  if (std::strcmp(name, "vkCmdCopyBuffer") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(copy_buffer);
  if (std::strcmp(name, "vkCreateBuffer") == 0)
    return reinterpret_cast<PFN_vkVoidFunction>(create_buffer);
  return next_instance(instance, name);
}

}  // extern "C"
