// Gates 88 and 211: the Android layer in the framework's own code: memory warnings, models of content providers, budgets.
package dev.dollop.android

import android.app.Activity
import android.app.ActivityManager
import android.app.Application
import android.content.ComponentCallbacks2
import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.content.res.AssetFileDescriptor
import android.database.Cursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import dev.dollop.ChatOptions
import dev.dollop.DollopException
import dev.dollop.Engine
import dev.dollop.EngineOptions
import dev.dollop.Event
import dev.dollop.GenerateOptions
import dev.dollop.Precision
import dev.dollop.Sampling
import dev.dollop.Status
import dev.dollop.TrimLevel
import java.io.File
import java.io.FileNotFoundException
import java.util.concurrent.atomic.AtomicInteger
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf

/** Provides the default model as a file. */
class Models : ContentProvider() {
    override fun onCreate(): Boolean = true

    override fun openAssetFile(uri: Uri, mode: String): AssetFileDescriptor {
        if (uri.lastPathSegment != "model") throw FileNotFoundException("$uri")
        val file = ParcelFileDescriptor.open(File(path), ParcelFileDescriptor.MODE_READ_ONLY)
        return AssetFileDescriptor(file, 0, AssetFileDescriptor.UNKNOWN_LENGTH)
    }

    override fun query(uri: Uri, p: Array<String>?, s: String?, a: Array<String>?, o: String?): Cursor? = null
    override fun getType(uri: Uri): String? = null
    override fun insert(uri: Uri, values: ContentValues?): Uri? = null
    override fun delete(uri: Uri, s: String?, a: Array<String>?): Int = 0
    override fun update(uri: Uri, values: ContentValues?, s: String?, a: Array<String>?): Int = 0

    companion object {
        val path: String = System.getProperty("dollop.model")
    }
}

@RunWith(RobolectricTestRunner::class)
class AndroidTest {
    private val application: Application = RuntimeEnvironment.getApplication()
    private val options = EngineOptions(threads = 2, context = 256, precision = Precision.Exact(4))

    @Test
    @Suppress("DEPRECATION")
    fun onTrimMemoryLevelsMapToTrimLevels() {
        val expected = mapOf(
            ComponentCallbacks2.TRIM_MEMORY_RUNNING_MODERATE to TrimLevel.MODERATE,
            ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW to TrimLevel.MODERATE,
            ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL to TrimLevel.CRITICAL,
            ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN to TrimLevel.MODERATE,
            ComponentCallbacks2.TRIM_MEMORY_BACKGROUND to TrimLevel.CRITICAL,
            ComponentCallbacks2.TRIM_MEMORY_MODERATE to TrimLevel.COMPLETE,
            ComponentCallbacks2.TRIM_MEMORY_COMPLETE to TrimLevel.COMPLETE,
            0 to TrimLevel.NORMAL,
            // Unknown levels count as the next lower known one.
            12 to TrimLevel.MODERATE, 17 to TrimLevel.CRITICAL, 30 to TrimLevel.MODERATE, 50 to TrimLevel.CRITICAL, 100 to TrimLevel.COMPLETE,
        )
        assertEquals(expected, expected.mapValues { trimLevel(it.key) })
    }

    @Test
    fun systemCallbacksTrimTheEngine() = runBlocking<Unit> {
        val smallest = Engine.plan(Models.path, options).smallestBytes
        val scope = CoroutineScope(Dispatchers.Default)
        val trims = Channel<Trimmed>(Channel.UNLIMITED)
        suspend fun next() = withTimeout(60_000) { trims.receive() }
        val engine = Engine.open(Models.path, options.copy(memoryBytes = smallest + (24 shl 20)))
        val following = engine.followMemory(application, scope) { trims.trySend(it) }
        val full = engine.plan().expertBytes
        application.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_BACKGROUND)
        assertEquals(TrimLevel.CRITICAL, next().also { assertTrue(it.bytes > 0 && it.failure == null, "$it") }.level)
        assertTrue(engine.plan().expertBytes < full)
        application.onLowMemory()
        assertEquals(TrimLevel.COMPLETE, next().level)
        // An activity is in front again.
        Robolectric.buildActivity(Activity::class.java).setup()
        assertEquals(TrimLevel.NORMAL, next().level)
        assertEquals(full, engine.plan().expertBytes)
        // After close(), levels are ignored. A closed engine also ends it.
        following.close()
        application.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_BACKGROUND)
        val again = engine.followMemory(application, scope) { trims.trySend(it) }
        engine.close()
        application.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_COMPLETE)
        again.close()
        scope.cancel()
        assertTrue(trims.tryReceive().isFailure)
    }

    @Test
    fun aFailedTrimIsTriedAgainUntilItSucceedsOrTheLevelChanges() = runBlocking<Unit> {
        val smallest = Engine.plan(Models.path, options).smallestBytes
        val scope = CoroutineScope(Dispatchers.Default)
        val trims = Channel<Trimmed>(Channel.UNLIMITED)
        suspend fun next() = withTimeout(60_000) { trims.receive() }
        Engine.open(Models.path, options.copy(memoryBytes = smallest + (24 shl 20))).use { real ->
            val full = real.plan().expertBytes
            val failure = assertFailsWith<DollopException> { real.setMemory(1) }
            val failures = AtomicInteger(2)
            val failing = object : Engine by real {
                override suspend fun trim(level: TrimLevel): Long =
                    if (failures.getAndDecrement() > 0) throw failure else real.trim(level)
            }
            failing.followMemory(application, scope) { trims.trySend(it) }.use {
                application.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_BACKGROUND)
                repeat(2) { assertEquals(Trimmed(TrimLevel.CRITICAL, 0, failure), next()) }
                assertEquals(full, real.plan().expertBytes)
                val third = next()
                assertTrue(third.level == TrimLevel.CRITICAL && third.failure == null && third.bytes > 0, "$third")
                assertTrue(real.plan().expertBytes < full)
                // Another level replaces one that keeps failing.
                failures.set(1)
                application.onLowMemory()
                assertEquals(Trimmed(TrimLevel.COMPLETE, 0, failure), next())
                Robolectric.buildActivity(Activity::class.java).setup()
                assertEquals(TrimLevel.NORMAL, next().also { assertTrue(it.failure == null, "$it") }.level)
                assertEquals(full, real.plan().expertBytes)
            }
        }
        scope.cancel()
        assertTrue(trims.tryReceive().isFailure)
    }

    @Test
    fun aModelOfAContentProviderOpens() = runBlocking<Unit> {
        Robolectric.setupContentProvider(Models::class.java, "dev.dollop.models")
        val uri = Uri.parse("content://dev.dollop.models/model")
        assertEquals(Engine.plan(Models.path, options), Engine.plan(application, uri, options))
        Engine.open(application, uri, options).use { engine ->
            engine.chat(ChatOptions(system = "You are brief.")).use { chat ->
                val events = chat.send("What is the capital of France?", GenerateOptions(24, Sampling.Greedy)).toList()
                assertTrue("Paris" in events.joinToString("") { it.text } && events.last() is Event.Done, "$events")
            }
        }
        val none = Uri.parse("content://dev.dollop.models/none")
        assertFailsWith<FileNotFoundException> { Engine.open(application, none, options) }
        val folder = Uri.fromFile(File(Models.path).parentFile)
        val failure = runCatching { Engine.open(application, folder, options).close() }.exceptionOrNull()
        assertTrue(failure is FileNotFoundException || (failure as DollopException).status == Status.INVALID, "$failure")
    }

    @Test
    fun budgetsDependOnTheDeviceAndItsAvailableMemory() {
        val manager = shadowOf(application.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager)
        val gib = 1L shl 30
        fun device(total: Double, available: Double, low: Boolean = false): DeviceMemory {
            manager.setMemoryInfo(
                ActivityManager.MemoryInfo().also {
                    it.totalMem = (total * gib).toLong()
                    it.availMem = (available * gib).toLong()
                    it.threshold = gib / 4
                    it.lowMemory = low
                },
            )
            return DeviceMemory.of(application)
        }
        manager.setMemoryClass(256)
        assertEquals(256, device(5.6, 3.0).heapMegabytes)
        // The kernel's memory on devices with nominally 3, 4, 6, 8, 12 and 16 GB, most of it free.
        val budgets = listOf(2.7, 3.6, 5.6, 7.4, 11.2, 15.1).map { device(it, it).budget() / 100_000_000 }
        assertEquals(listOf<Long>(8, 12, 20, 25, 30, 40), budgets)
        assertEquals(4, device(1.8, 1.8).budget() / 100_000_000)
        // Two thirds of the memory available above the threshold, if that is less.
        assertEquals(gib / 2, device(7.4, 1.0).budget())
        assertEquals(0, device(7.4, 0.2, low = true).budget())
        assertTrue(device(7.4, 0.2, low = true).low)
        manager.setIsLowRamDevice(true)
        assertEquals(4, device(7.4, 7.4).budget() / 100_000_000)
    }
}
