# The CUDA backend and what goes to a machine with a GPU; included by the Makefile. Needs nvcc 13 (NVCC=...), no GPU.

CUDA_HOME ?= /usr/local/cuda
NVCC ?= $(CUDA_HOME)/bin/nvcc
CUDA_ARCHITECTURES := 80 90a
C := build/cuda
NVCCFLAGS := -std=c++20 -O3 -I. -I$(G) -Xcompiler -Wall,-Wextra,-Werror \
	$(foreach a,$(CUDA_ARCHITECTURES),-gencode arch=compute_$(a),code=sm_$(a))
# Nothing but the driver and cuBLASLt is taken from the machine it runs on.
CUDA_LIBS := -L$(CUDA_HOME)/lib -L$(CUDA_HOME)/lib64 -lcublasLt -lcudart_static -ldl -lrt -lm -pthread

CUDA_SOURCES := $(wildcard kernels/cuda/*.cu)
CUDA_C_SOURCES := $(wildcard kernels/cuda/*.c)
CUDA_OBJECTS := $(CUDA_SOURCES:%.cu=$(C)/obj/%.o) $(CUDA_C_SOURCES:%.c=$(C)/obj/%.o)
CUDA_ARCHIVE := $(C)/libquintet_cuda.a
CUDA_CHECK := $(patsubst %.c,$(C)/obj/%.o,$(wildcard tests/gpu/check_*.c))
CUDA_TIME := $(patsubst %.c,$(C)/obj/%.o,$(wildcard tests/gpu/time_*.c))
CUDA_PROGRAMS := $(C)/check_kernels $(C)/time_kernels
# The reference kernels and what they stand on.
CUDA_HOST_OBJECTS := $(filter $(B)/obj/kernels/% $(B)/obj/common/%,$(OBJECTS))
CUDA_HOST := $(C)/libquintet_host.a
BUNDLE := build/bundle

.PHONY: cuda bundle

cuda: $(CUDA_ARCHIVE) $(CUDA_PROGRAMS) ## compile the CUDA kernels and the programs that check and time them

$(C)/obj/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  NVCC    $<"
	@$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(C)/obj/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC      $<"
	@$(CC) $(CPPFLAGS) -isystem $(CUDA_HOME)/include $(ALL_CFLAGS) -MMD -MP -c $< -o $@

$(CUDA_ARCHIVE): $(CUDA_OBJECTS)
	@rm -f $@
	@echo "  AR      $@"
	@ar rcs $@ $(CUDA_OBJECTS)

$(CUDA_HOST): $(CUDA_HOST_OBJECTS)
	@rm -f $@
	@ar rcs $@ $(CUDA_HOST_OBJECTS)

$(C)/check_kernels: $(CUDA_CHECK) $(CUDA_ARCHIVE) $(CUDA_HOST)
$(C)/time_kernels: $(CUDA_TIME) $(CUDA_ARCHIVE) $(CUDA_HOST)
$(CUDA_PROGRAMS):
	@echo "  LD      $@"
	@$(CXX) $^ $(CUDA_LIBS) -o $@

# Programs and the shared libraries they need beyond the C library, the C++ runtime and NVIDIA's, in one folder that
# can be moved anywhere.
bundle: all cuda ## build/bundle/: programs and libraries for a machine with a GPU, its driver and cuBLASLt
	@rm -rf $(BUNDLE)
	@mkdir -p $(BUNDLE)/lib
	@for b in $(BINARIES); do \
		$(CC) $(ALL_CFLAGS) $(LDFLAGS) -Wl,-rpath,'$$ORIGIN/lib' -Wl,--disable-new-dtags -Wl,-s -o $(BUNDLE)/$${b##*/} \
			$(B)/obj/$$(case $$b in */quintet) echo tools;; *) echo services/$${b##*quintet-};; esac)/main.o \
			$(ARCHIVE) $(LDLIBS) || exit 1; done
	@cp $(CUDA_PROGRAMS) config.yaml $(BUNDLE)/
	@ldd $(BINARIES) | awk '$$2 == "=>" && $$3 ~ /^\// { print $$3 }' | sort -u \
		| grep -vE '/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux[^/]*|libcuda|libcublas[^/]*)\.so' \
		| xargs -I{} cp -L {} $(BUNDLE)/lib/
	@strip --strip-unneeded $(BUNDLE)/lib/* $(BUNDLE)/check_kernels $(BUNDLE)/time_kernels
	@du -sh $(BUNDLE)

-include $(shell find $(C)/obj -name '*.d' 2>/dev/null)
