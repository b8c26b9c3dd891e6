// The whole public interface.
#pragma once

#include "intaglio/backend.h"
#include "intaglio/batch.h"
#include "intaglio/bundle.h"
#include "intaglio/command.h"
#include "intaglio/embedding.h"
#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/guidance.h"
#include "intaglio/image.h"
#include "intaglio/options.h"
#include "intaglio/pipeline.h"
#include "intaglio/rng.h"
#include "intaglio/sampling.h"
#include "intaglio/tensor.h"
#include "intaglio/tokenizer.h"
