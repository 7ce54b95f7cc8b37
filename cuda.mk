# The build with CUDA beside the plain one, and what goes to a machine with a GPU; included by the Makefile. Needs nvcc 13
# (NVCC=...), no GPU. VARIANT=cuda compiles everything once more with QN_CUDA: the same programs, with both backends.

CUDA_HOME ?= /usr/local/cuda
NVCC ?= $(CUDA_HOME)/bin/nvcc
CUDA_ARCHITECTURES := 80 90a
BUNDLE := build/bundle

.PHONY: cuda gpu-programs bundle bundle-folder

cuda: ## build the daemons, the command and the GPU checks with CUDA into build/cuda/
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=cuda all gpu-programs

bundle: ## build/bundle/: programs and libraries for a machine with a GPU, its driver and cuBLASLt
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=cuda all gpu-programs
	@$(MAKE) --no-print-directory VARIANT=cuda bundle-folder

ifeq ($(VARIANT),cuda)

CPPFLAGS += -DQN_CUDA -isystem $(CUDA_HOME)/include
NVCCFLAGS := -std=c++20 -O3 -I. -I$(G) -DQN_CUDA -Xcompiler -Wall,-Wextra,-Werror \
	$(foreach a,$(CUDA_ARCHITECTURES),-gencode arch=compute_$(a),code=sm_$(a))
# Nothing but the driver and cuBLASLt is taken from the machine it runs on; who calls no product does not need cuBLASLt.
CUDA_LIBS := -L$(CUDA_HOME)/lib -L$(CUDA_HOME)/lib64 -Wl,--as-needed -lcublasLt -Wl,--no-as-needed -lcudart_static -lrt -lstdc++

SOURCES += $(wildcard kernels/cuda/*.c)
OBJECTS += $(patsubst %.cu,$(B)/obj/%.o,$(wildcard kernels/cuda/*.cu kernels/cuda/*/*.cu)) $(patsubst %.c,$(B)/obj/%.o,$(wildcard kernels/cuda/*.c))
GPU_PROGRAMS := $(B)/check_kernels $(B)/check_golden $(B)/check_regions $(B)/time_kernels

BUNDLE_RPATH := -Wl,-rpath,'$$ORIGIN/lib' -Wl,--disable-new-dtags

gpu-programs: $(GPU_PROGRAMS)

$(B)/obj/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  NVCC    $<"
	@$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(B)/check_golden: $(B)/obj/tests/gpu/check_golden.o
$(B)/check_regions: $(B)/obj/tests/unit/test_region_cuda.o
$(B)/check_kernels: $(patsubst %.c,$(B)/obj/%.o,$(filter-out %/check_golden.c,$(wildcard tests/gpu/check_*.c)))
$(B)/time_kernels: $(patsubst %.c,$(B)/obj/%.o,$(wildcard tests/gpu/time_*.c))
$(GPU_PROGRAMS): $(ARCHIVE)
	@echo "  LD      $@"
	@$(CC) $(ALL_CFLAGS) $(LDFLAGS) $(BUNDLE_RPATH) $(filter-out $(ARCHIVE),$^) $(ARCHIVE) $(LDLIBS) -lcmocka -o $@

# Programs and the shared libraries they need beyond the C library, the C++ runtime and NVIDIA's, in one folder that
# can be moved anywhere.
bundle-folder: $(BINARIES) $(GPU_PROGRAMS)
	@rm -rf $(BUNDLE)
	@mkdir -p $(BUNDLE)/lib
	@for b in $(BINARIES); do \
		$(CC) $(ALL_CFLAGS) $(LDFLAGS) $(BUNDLE_RPATH) -Wl,-s -o $(BUNDLE)/$${b##*/} \
			$(B)/obj/$$(case $$b in */quintet) echo tools;; *) echo services/$${b##*quintet-};; esac)/main.o \
			$(ARCHIVE) $(LDLIBS) || exit 1; done
	@cp $(GPU_PROGRAMS) config.yaml $(BUNDLE)/
	@ldd $(BINARIES) $(GPU_PROGRAMS) | awk '$$2 == "=>" && $$3 ~ /^\// { print $$3 }' | sort -u \
		| grep -vE '/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux[^/]*|libcuda|libcublas[^/]*)\.so' \
		| xargs -I{} cp -L {} $(BUNDLE)/lib/
	@strip --strip-unneeded $(BUNDLE)/lib/* $(GPU_PROGRAMS:$(B)/%=$(BUNDLE)/%)
	@du -sh $(BUNDLE)

endif
