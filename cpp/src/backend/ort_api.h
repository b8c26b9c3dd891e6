// Includes ONNX Runtime's C++ API without a link-time dependency on its library.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#include <onnxruntime_ep_device_ep_metadata_keys.h>
#undef ORT_API_MANUAL_INIT
