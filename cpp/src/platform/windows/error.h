#pragma once

#include <cerrno>
#include <system_error>

#include "platform/windows/windows.h"

namespace intaglio::platform {

// Sets errno as the C library would for the last error of Windows.
inline void set_errno() {
  const std::error_code error(static_cast<int>(::GetLastError()), std::system_category());
  const std::error_condition condition = error.default_error_condition();
  errno = condition.category() == std::generic_category() ? condition.value() : EIO;
}

}  // namespace intaglio::platform
