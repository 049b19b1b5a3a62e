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
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.launch

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

/**
 * Trims the engine when the system requests memory, and restores its cache when an activity is started.
 *
 * This ends when the returned object is closed or [scope] is cancelled. After the engine is closed, it ends at the next
 * change of level.
 *
 * @param scope runs the trims; it should live as long as the engine
 * @param onTrimmed receives the result of each trim, in [scope]
 */
public fun Engine.followMemory(context: Context, scope: CoroutineScope, onTrimmed: (Trimmed) -> Unit = {}): AutoCloseable =
    MemoryFollower(this, context.applicationContext, scope, onTrimmed)

private class MemoryFollower(
    private val engine: Engine,
    private val context: Context,
    scope: CoroutineScope,
    private val onTrimmed: (Trimmed) -> Unit,
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
        wanted.collect { level ->
            if (level == followed) return@collect
            val trimmed = try {
                Trimmed(level, engine.trim(level), null)
            } catch (e: DollopException) {
                if (e.status == Status.CLOSED) return@collect job.cancel()
                // The cache could not grow. It stays as it is until the level changes.
                Trimmed(level, 0, e)
            }
            followed = level
            onTrimmed(trimmed)
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
