// The memory of a device, and a first budget for a model on it. docs/embedding.md has the sources of the numbers.
package dev.dollop.android

import android.app.ActivityManager
import android.content.Context

/** The memory of a device, as [ActivityManager] reports it. */
public data class DeviceMemory(
    /** Bytes available to the kernel: a few hundred megabytes less than the device's nominal memory. */
    val totalBytes: Long,
    /** Bytes available now, some of them only after the system ends background processes. */
    val availableBytes: Long,
    /** The threshold in bytes. If fewer are available, the system ends processes. */
    val thresholdBytes: Long,
    /** Whether fewer bytes than the threshold are available now. */
    val low: Boolean,
    /** Whether the device declares that it has little memory ("Android Go"). */
    val lowRamDevice: Boolean,
    /** The limit of the Java heap in megabytes. A model is not on that heap. */
    val heapMegabytes: Int,
    /** The limit of the Java heap in megabytes for apps with `android:largeHeap`. */
    val largeHeapMegabytes: Int,
) {
    /**
     * Returns a first budget in bytes, for [dev.dollop.EngineOptions.memoryBytes].
     *
     * It leaves room for the system and one other app on a device of this class. It is at most two thirds of the memory
     * that is available above the threshold now. A model works with it if it is at least `Plan.smallestBytes` of
     * `Engine.plan`.
     */
    public fun budget(): Long {
        val left = (availableBytes - thresholdBytes).coerceAtLeast(0)
        return minOf(ofClass(), left / 3 * 2)
    }

    /** The budget in bytes for the device's class. */
    private fun ofClass(): Long = when {
        lowRamDevice -> 400 * MEGABYTE
        else -> CLASSES.firstOrNull { totalBytes >= it.first * GIBIBYTE / 10 }?.second ?: (400 * MEGABYTE)
    }

    /** Queries the device's memory. */
    public companion object {
        private const val MEGABYTE = 1_000_000L
        private const val GIBIBYTE = 1L shl 30

        /**
         * Classes of devices with nominally 16, 12, 8, 6, 4 and 3 GB: the least memory of the kernel, in tenths of a
         * GiB, and the budget.
         */
        private val CLASSES = listOf(
            140 to 4_000 * MEGABYTE, 100 to 3_000 * MEGABYTE, 70 to 2_500 * MEGABYTE, 50 to 2_000 * MEGABYTE,
            33 to 1_200 * MEGABYTE, 24 to 800 * MEGABYTE,
        )

        /** Queries the system. Available memory changes all the time, so call this just before opening a model. */
        public fun of(context: Context): DeviceMemory {
            val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
            val info = ActivityManager.MemoryInfo().also(manager::getMemoryInfo)
            return DeviceMemory(
                info.totalMem, info.availMem, info.threshold, info.lowMemory, manager.isLowRamDevice,
                manager.memoryClass, manager.largeMemoryClass,
            )
        }
    }
}
