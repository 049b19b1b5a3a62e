// Trims an engine as the system requests. The callbacks run on the main thread; the engine is trimmed in a coroutine.
package dev.dollop.android

import android.app.Activity
import android.app.Application
import android.content.ComponentCallbacks2
import android.content.Context
import android.content.res.Configuration
import android.os.Bundle
import dev.dollop.DollopException
import dev.dollop.Engine
import dev.dollop.Status
import dev.dollop.TrimLevel
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.withTimeoutOrNull

/**
 * Returns the engine's trim level for a level of [ComponentCallbacks2.onTrimMemory].
 *
 * Future systems may add levels between the known ones. An unknown level counts as the next lower known one.
 *
 * | Android | engine |
 * |---|---|
 * | an activity is started | [TrimLevel.NORMAL] |
 * | `RUNNING_MODERATE`, `RUNNING_LOW`, `UI_HIDDEN` | [TrimLevel.MODERATE] |
 * | `RUNNING_CRITICAL`, `BACKGROUND` | [TrimLevel.CRITICAL] |
 * | `MODERATE`, `COMPLETE`, `onLowMemory` | [TrimLevel.COMPLETE] |
 *
 * Since Android 14, apps receive only `UI_HIDDEN` and `BACKGROUND`.
 */
@Suppress("DEPRECATION") // Older systems send these levels.
public fun trimLevel(onTrimMemory: Int): TrimLevel = when {
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_MODERATE -> TrimLevel.COMPLETE
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND -> TrimLevel.CRITICAL
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN -> TrimLevel.MODERATE
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL -> TrimLevel.CRITICAL
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_MODERATE -> TrimLevel.MODERATE
    else -> TrimLevel.NORMAL
}

/**
 * The result of a trim.
 *
 * @property level the level that the system requested
 * @property bytes bytes given back to the system
 * @property failure why the trim failed; null if it did not
 */
public data class Trimmed(val level: TrimLevel, val bytes: Long, val failure: DollopException?)

/** The pause before a failed trim is tried again. It doubles with each failure, up to [LONGEST_PAUSE]. */
private val FIRST_PAUSE = 1.seconds
private val LONGEST_PAUSE = 60.seconds

/**
 * Trims the engine when the system requests memory, and restores its cache when an activity is started.
 *
 * A trim that fails is tried again after a second, then after ever longer pauses of at most a minute, until it succeeds or
 * the system requests another level. It is not tried again if the engine can never do it ([Status.UNSUPPORTED]).
 *
 * This ends when the returned object is closed or [scope] is cancelled. After the engine is closed, it ends at the next
 * change of level.
 *
 * @param scope runs the trims; it should live as long as the engine
 * @param onTrim receives the result of each trim, also of failed ones, in [scope]
 */
public fun Engine.followMemory(context: Context, scope: CoroutineScope, onTrim: (Trimmed) -> Unit = {}): AutoCloseable =
    MemoryFollower(this, context.applicationContext, scope, onTrim)

private class MemoryFollower(
    private val engine: Engine,
    private val context: Context,
    scope: CoroutineScope,
    private val onTrim: (Trimmed) -> Unit,
) : AutoCloseable, ComponentCallbacks2, Application.ActivityLifecycleCallbacks {
    /** The requested level. Levels may change faster than the engine follows; only the latest counts. */
    private val wanted = MutableStateFlow(TrimLevel.NORMAL)
    private val job: Job = scope.launch { follow() }

    init {
        context.registerComponentCallbacks(this)
        (context as? Application)?.registerActivityLifecycleCallbacks(this)
        job.invokeOnCompletion { unregister() }
    }

    private suspend fun follow() {
        var followed = TrimLevel.NORMAL
        while (true) {
            val level = wanted.first { it != followed }
            if (!trim(level)) return job.cancel()
            followed = level
        }
    }

    /** Trims to [level] until that succeeds or another level is requested. Returns false if the engine is closed. */
    private suspend fun trim(level: TrimLevel): Boolean {
        var pause = FIRST_PAUSE
        while (true) {
            val trimmed = try {
                Trimmed(level, engine.trim(level), null)
            } catch (e: DollopException) {
                Trimmed(level, 0, e)
            }
            val status = trimmed.failure?.status
            if (status == Status.CLOSED) return false
            onTrim(trimmed)
            if (status == null || status == Status.UNSUPPORTED) return true
            // Another level replaces this one.
            if (withTimeoutOrNull(pause) { wanted.first { it != level } } != null) return true
            pause = minOf(pause * 2, LONGEST_PAUSE)
        }
    }

    private fun unregister() {
        context.unregisterComponentCallbacks(this)
        (context as? Application)?.unregisterActivityLifecycleCallbacks(this)
    }

    override fun close(): Unit = job.cancel()

    override fun onTrimMemory(level: Int) {
        wanted.value = trimLevel(level)
    }

    @Deprecated("Called only by systems before Android 14.")
    override fun onLowMemory() {
        wanted.value = TrimLevel.COMPLETE
    }

    override fun onActivityStarted(activity: Activity) {
        wanted.value = TrimLevel.NORMAL
    }

    override fun onConfigurationChanged(newConfig: Configuration) {}
    override fun onActivityCreated(activity: Activity, savedInstanceState: Bundle?) {}
    override fun onActivityResumed(activity: Activity) {}
    override fun onActivityPaused(activity: Activity) {}
    override fun onActivityStopped(activity: Activity) {}
    override fun onActivitySaveInstanceState(activity: Activity, outState: Bundle) {}
    override fun onActivityDestroyed(activity: Activity) {}
}
