// How much memory a device has, and a first budget for a model on it. docs/embedding.md says where the numbers come from.
package dev.dollop.android

import android.app.ActivityManager
import android.content.Context

/** What the system says of a device's memory, in bytes. */
public data class DeviceMemory(
    /** All that the kernel has: some hundred megabytes less than what the device is sold with. */
    val totalBytes: Long,
    /** What could be had now, partly by ending processes in the background. */
    val availableBytes: Long,
    /** Below this the system ends processes. */
    val thresholdBytes: Long,
    /** Whether that is so now. */
    val low: Boolean,
    /** Whether the device says that it has little memory ("Android Go"). */
    val lowRamDevice: Boolean,
    /** Limit of the Java heap in megabytes, and with `android:largeHeap`. A model is no part of it. */
    val heapMegabytes: Int,
    val largeHeapMegabytes: Int,
) {
    /**
     * A budget to begin with, for [dev.dollop.EngineOptions.memoryBytes]: what a device of this class gives an app that has one more
     * beside it, and at most two thirds of what is left above the system's threshold now. Ask
     * `Engine.plan` whether a model works with it; less than `Plan.smallestBytes` does not.
     */
    public fun budget(): Long {
        val left = (availableBytes - thresholdBytes).coerceAtLeast(0)
        return minOf(ofClass(), left / 3 * 2)
    }

    private fun ofClass(): Long = when {
        lowRamDevice -> 400 * MEGABYTE
        else -> CLASSES.firstOrNull { totalBytes >= it.first * GIBIBYTE / 10 }?.second ?: (400 * MEGABYTE)
    }

    public companion object {
        private const val MEGABYTE = 1_000_000L
        private const val GIBIBYTE = 1L shl 30

        /** Tenths of gibibytes that the kernel has at least on devices sold with 16, 12, 8, 6, 4 and 3; and the budget of each. */
        private val CLASSES = listOf(
            140 to 4_000 * MEGABYTE, 100 to 3_000 * MEGABYTE, 70 to 2_500 * MEGABYTE, 50 to 2_000 * MEGABYTE,
            33 to 1_200 * MEGABYTE, 24 to 800 * MEGABYTE,
        )

        /** Asks the system. What is available changes from moment to moment: ask just before a model is opened. */
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
